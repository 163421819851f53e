"""Training rows straight from a model that runs beside the trainer; nothing is kept of them."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sae.base import UserError, digest, only_process, plain, remove_unfinished, require, say
from sae.base.states import save_state, steps_saved
from sae.cache.stored import from_stored, to_stored
from sae.dictionary import Place, Record
from sae.models import find_site, load_model, measured
from sae.rows.live_text import LiveText, Position, check_enough, check_text
from sae.rows.mixing import MixingBuffer
from sae.rows.reading import Reading, activations, check_sites, tokenizer_digest
from sae.rows.shuffle import Rows
from sae.rows.source import SAMPLE_ROWS, record_of_rows
from sae.text.packing import RowBlock

_BLOCKS_AHEAD = 2


class LiveRows:
    """A `RowSource` over a model that computes while others train.

    Its rows are those that a cache of the same text would give to training, in an order of its
    own: that of the text, mixed among `mix_rows`. A text that ends begins again.

    Args:
        config: its model, data, context_size, one_document_a_row, dtype, batch_size and
            text_workers count.
        hook_name: where rows are read; if None, the one hook of the configuration.
        hook_name_out: where a transcoder's rows to predict are read.
        batch_size: rows a batch.
        mix_rows: rows in memory that each batch is drawn from.
        max_norm_multiple: rows above this multiple of the median norm of the first rows are
            left out; None keeps all.
        seed: of the mixing.
        state_folder: for what going on needs, in a folder of this stream, beside the folders of
            the checkpoints that go with it.

    Raises:
        UserError: before weights are loaded, if these are no places in the model, or the text
            cannot be read or does not fill a batch.
    """

    def __init__(  # noqa: PLR0913
        self,
        config: Reading,
        hook_name: str | None,
        hook_name_out: str | None,
        *,
        batch_size: int,
        mix_rows: int,
        max_norm_multiple: float | None,
        seed: int,
        state_folder: Path,
    ) -> None:
        require(
            mix_rows >= batch_size,
            f"mix_rows={mix_rows} is less than one batch of "
            f"train_batch_size_tokens={batch_size}; give that many or more",
        )
        names = _hook_names(config, hook_name, hook_name_out)
        self._config = replace(config, hook_names=names)
        check_sites(self._config)
        check_text(config, batch_size)
        self._batch_size, self._mix_rows, self._seed = batch_size, mix_rows, seed
        self._max_norm_multiple = max_norm_multiple
        self._model = load_model(config.model)
        found = [find_site(self._model.module, name) for name in names]
        self._sites = measured(self._model.module, found)
        self._text = LiveText(config, self._model)
        self._state_path = state_folder / f".stream-{digest(self.identity)}"
        self._buffer = MixingBuffer(mix_rows, seed)
        self._position = Position()
        self._n_given = 0

    @property
    def identity(self) -> dict[str, object]:
        config, names = self._config, [site.hook_name for site in self._sites]
        return {
            "weights": self._model.record.weight_digest,
            "tokenizer": tokenizer_digest(self._model),
            "bos_token_id": self._model.bos_token_id,
            "harvest": {
                "data": plain(config.data),
                "context_size": config.context_size,
                "one_document_a_row": config.one_document_a_row,
                "dtype": config.dtype,
            },
            "hook_name": names[0],
            "hook_name_out": names[1] if names[1:] else None,
            "max_norm_multiple": self._max_norm_multiple,
            "train_batch_size_tokens": self._batch_size,
            "mix_rows": self._mix_rows,
            "shuffle_seed": self._seed,
        }

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(self._sites)

    @property
    def record(self) -> Record:
        model, config = self._model, self._config
        return record_of_rows(
            model.record,
            config.data.record,
            config.context_size,
            model.bos_token_id,
            cache_digest=None,
        )

    def sample(self) -> Rows:
        """The first training rows of the text."""
        return self._kept(self._first)

    def held_out(self, n_rows: int) -> Rows | None:
        """The first held-out rows of the text."""
        blocks = (block for block in self._text.once() if block.held_out)
        found = _joined((self._kept(self._rows(block)) for block in blocks), n_rows)
        return tuple(x[:n_rows] for x in found) if len(found[0]) else None

    def batches(self, first: int) -> Generator[Rows, None, None]:
        """Endless batches, beginning with number `first`; a thread computes until it is closed.

        One at a time: `save` is about the last one that was asked for.
        """
        self._buffer = MixingBuffer(self._mix_rows, self._seed)
        self._position, self._n_given = Position(), first
        if first:
            self._load(first)
        return self._batches()

    def save(self, n_batches: int) -> None:
        if n_batches != self._n_given:
            raise ValueError(f"{self._n_given} batches were given, and not {n_batches}")
        state = {
            "position": astuple(self._position),
            "buffer": self._buffer.state_dict(),
        }
        save_state(self._saved(n_batches), state)

    def forget(self) -> None:
        # Other turns of a sweep, and whoever extends a training, begin where theirs stopped.
        folders = self._state_path.parent.iterdir()
        needed = {step for folder in folders for step in steps_saved(folder)}
        for path in self._state_path.glob("stream_*.pt"):
            if int(path.stem.removeprefix("stream_")) not in needed:
                path.unlink()

    def _load(self, first: int) -> None:
        path = self._saved(first)
        anew = "remove the checkpoints of this training to start it anew"
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            position, buffer = state["position"], state["buffer"]
        except FileNotFoundError as error:
            raise UserError(
                f"{path} is not there, and without it batch {first} cannot be had; {anew}"
            ) from error
        except Exception as error:
            raise UserError(f"{path} is damaged ({error}); {anew}") from error
        self._position = Position(*position)
        self._buffer.load_state_dict(buffer)

    def _saved(self, n_batches: int) -> Path:
        return self._state_path / f"stream_{n_batches:010d}.pt"

    def _batches(self) -> Generator[Rows, None, None]:
        begin, _ = self._position, self._bound
        with (
            only_process(self._state_path / ".lock", self._refusal),
            _Ahead(lambda s: self._blocks(begin, s), self._model.device) as ahead,
        ):
            remove_unfinished(self._state_path)
            taken = self._noted(ahead)
            if not self._buffer.full:
                say(f"train: {self._mix_rows:,} rows are computed to draw the first batch from")
            while True:
                rows = self._buffer.batch(taken, self._batch_size)
                self._n_given += 1
                yield rows

    def _refusal(self, owner: str) -> UserError:
        return UserError(
            f"{self._state_path.parent}: another process ({owner}) trains on the same rows; "
            "wait for it, choose another run=..., or train it all by one command"
        )

    def _noted(self, ahead: "_Ahead") -> Iterator[Rows]:
        """The rows of blocks; how far the text is read with them is noted."""
        while True:
            block = ahead.take()
            self._position = block.after
            yield block.rows

    def _blocks(self, begin: Position, stopped: threading.Event) -> Iterator["_Block"]:
        for block, after in self._text.onwards(begin, stopped):
            yield _Block(self._kept(self._rows(block)), after)

    @cached_property
    def _first(self) -> Rows:
        """The text's first training rows, those with large norms included."""
        blocks = (block for block in self._text.once() if not block.held_out)
        found = _joined(map(self._rows, blocks), SAMPLE_ROWS)
        # Fewer than that are the whole text.
        if len(found[0]) < SAMPLE_ROWS:
            check_enough(self._config, len(found[0]), self._batch_size)
        return found

    @cached_property
    def _bound(self) -> float | None:
        """The norm above which rows are left out."""
        if self._max_norm_multiple is None:
            return None
        return self._max_norm_multiple * float(_norms(self._first[0]).quantile(0.5))

    def _rows(self, block: RowBlock) -> Rows:
        """What a cache would hold of the text of some sequences, of each hook (row, d_in)."""
        there, model = block.documents >= 0, self._model
        (seen,) = activations(
            block.tokens,
            there,
            model=model,
            sites=self._sites,
            batch_size=len(block.tokens),
        )
        keep = torch.from_numpy(there & ~np.isin(block.tokens, model.special_token_ids))
        return tuple(self._stored(seen[site.hook_name])[keep] for site in self._sites)

    def _stored(self, x: Tensor) -> Tensor:
        return from_stored(*to_stored(x, self._config.dtype))

    def _kept(self, rows: Rows) -> Rows:
        if self._bound is None:
            return rows
        keep = _norms(rows[0]) <= self._bound
        return tuple(x[keep] for x in rows)


def _hook_names(config: Reading, hook_name: str | None, hook_name_out: str | None) -> list[str]:
    """The hook to read, and for a transcoder the one to predict."""
    if hook_name_out is None:
        require(
            hook_name is not None or len(config.hook_names) == 1,
            f"hook_name is not given, and harvest.hook_names={config.hook_names} names "
            "several; choose one",
        )
        return [hook_name or config.hook_names[0]]
    require(
        hook_name is not None,
        f"hook_name_out={hook_name_out} needs hook_name=..., the hook to read",
    )
    require(
        hook_name != hook_name_out,
        f"hook_name_out={hook_name_out} is hook_name itself; leave it out to train an "
        "autoencoder",
    )
    return [str(hook_name), hook_name_out]


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows of one forward pass."""

    rows: Rows
    after: Position
    """Of the block that comes next."""


class _Ahead:
    """Blocks that a thread makes, a few ahead of whoever takes them.

    Args:
        make: called in the thread, with what tells it to stop.
        device: where it computes.
    """

    def __init__(
        self, make: Callable[[threading.Event], Iterator[_Block]], device: torch.device
    ) -> None:
        self._make, self._device = make, device
        self._made: queue.Queue[_Block | BaseException] = queue.Queue(_BLOCKS_AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rows", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        while self._thread.is_alive():
            # It may wait for room.
            with suppress(queue.Empty):
                self._made.get(timeout=0.01)

    def take(self) -> _Block:
        """The next block; raises here what went wrong there."""
        found = self._made.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def _run(self) -> None:
        try:
            with _own_stream(self._device):
                for block in self._make(self._stopped):
                    self._made.put(block)
                    if self._stopped.is_set():
                        break
        except BaseException as error:
            self._made.put(error)


def _own_stream(device: torch.device) -> AbstractContextManager[Any]:
    """On a GPU what this thread computes does not queue up behind what others do."""
    if device.type != "cuda":
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


def _norms(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x.float(), dim=1)
    return norms


def _joined(parts: Iterator[Rows], limit: int) -> Rows:
    """Rows one after the other, up to the part that makes them `limit` or more."""
    found, n = [], 0
    for part in parts:
        found.append(part)
        n += len(part[0])
        if n >= limit:
            break
    return tuple(torch.cat(sides) for sides in zip(*found, strict=True))
