"""Training rows straight from a model that runs beside the trainer; nothing is kept of them."""

import hashlib
import itertools
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sae.base import (
    UserError,
    check_whole,
    digest,
    only_process,
    remove_unfinished,
    require,
    say,
)
from sae.base.states import save_state, steps_saved
from sae.cache.stored import from_stored, to_stored
from sae.models import LanguageModel, load_model, load_tokenizer, measured
from sae.rows.reading import (
    Reading,
    activations,
    check_sites,
    sites_of,
    tokenizer_digest,
)
from sae.rows.shuffle import MixingBuffer, Rows, first_parts, joined
from sae.rows.source import SAMPLE_ROWS, Asked, RowSource, record_of_rows
from sae.text.packing import RowBlock, TextCounts, TextPlan, is_held_out, pack
from sae.text.rows import Unreadable
from sae.text.tokens import encoded

# Two that wait and one that is computed.
_BLOCKS_AHEAD = 3
# A harvest gives a GPU whole chunks; here what is computed ahead has to stay in memory.
_MOST_TOKENS_A_FORWARD = 32_768


@dataclass(frozen=True, slots=True)
class Position:
    """How far the training side of a text was read."""

    reading: int = 0
    """Number of times that the text was read to its end."""
    sequences: int = 0
    """Number of training sequences that were read since."""
    digest: str = ""
    """Digest of the tokens of these sequences."""


class _Text:
    """The sequences that a cache of a whole text has, in blocks for one forward pass each."""

    def __init__(self, config: Reading, model: LanguageModel) -> None:
        self._config, self._model = config, model
        most = max(1, _MOST_TOKENS_A_FORWARD // config.context_size)
        usual = min(config.sequences_a_batch(model.device), most)
        self._sequences_a_block = config.batch_size or usual

    def once(
        self,
        stopped: threading.Event | None = None,
        *,
        n_workers: int | None = 0,
        counts: TextCounts | None = None,
    ) -> Iterator[RowBlock]:
        """Give blocks of both sides, until the text ends or `stopped` is set, by `Stopped`."""
        data = self._config.data
        return pack(
            encoded(data, self._model.tokenizer, n_workers, stopped),
            TextPlan(sys.maxsize, sys.maxsize, self._config.context_size),
            self._model.marks,
            counts or TextCounts(),
            held_out_fraction=data.held_out_fraction,
            one_document_a_row=self._config.one_document_a_row,
            rows_a_block=self._sequences_a_block,
        )

    def onwards(
        self, begin: Position, stopped: threading.Event
    ) -> Iterator[tuple[RowBlock, Position]]:
        """Give training blocks from a position on, endlessly, each with the next one's.

        A text that is not what it was before that position is refused.
        """
        for reading in itertools.count(begin.reading):
            counts = TextCounts()
            yield from self._reading(reading, begin, stopped, counts)
            if reading == 0:
                say(
                    "train: the end of the text is reached, and it is read again"
                    + counts.said_unreadable
                )
            begin = Position(reading + 1)

    def _reading(
        self, reading: int, begin: Position, stopped: threading.Event, counts: TextCounts
    ) -> Iterator[tuple[RowBlock, Position]]:
        found, at = hashlib.sha256(), 0
        n_workers = self._config.text_workers
        for block in self.once(stopped, n_workers=n_workers, counts=counts):
            if block.held_out:
                continue
            known = min(len(block.tokens), begin.sequences - at)
            if known > 0:
                found.update(block.tokens[:known].tobytes())
                at += known
                if at == begin.sequences and found.hexdigest() != begin.digest:
                    raise self._changed()
                block = RowBlock(False, block.tokens[known:], block.documents[known:])
            if len(block.tokens):
                found.update(block.tokens.tobytes())
                at += len(block.tokens)
                yield block, Position(reading, at, found.hexdigest())
        if at < begin.sequences:
            raise self._changed()

    def _changed(self) -> UserError:
        return UserError(
            f"data.name={self._config.data.name} is not the text with which this training "
            "was begun; put that text back, or give the new training another name=..."
        )


_Block = tuple[Rows, Position]
"""Rows of one forward pass, and the position of the one that comes next."""


class LiveRows(RowSource):
    """Rows of a model that computes while others train.

    They are those that a cache of the same text would give to training, in the order of the
    text, mixed among `mix_rows` in memory. A text that ends begins again. Norms are compared
    with the median of the first rows. What going on needs is kept in a folder of this stream in
    `state_folder`, beside those of the checkpoints that go with it. Unknown places and texts
    that cannot be read or do not fill a batch are refused before weights are loaded.
    """

    def __init__(
        self, config: Reading, asked: Asked, mix_rows: int, state_folder: Path
    ) -> None:
        require(
            mix_rows >= asked.batch_size,
            f"mix_rows={mix_rows} is less than one batch of "
            f"train_batch_size_tokens={asked.batch_size}; give that many or more",
        )

        def find(hook_name: str | None) -> str:
            require(
                hook_name is not None or len(config.hook_names) == 1,
                f"hook_name is not given, and harvest.hook_names={config.hook_names} names "
                "several; choose one",
            )
            return hook_name or config.hook_names[0]

        self._config = replace(config, hook_names=list(asked.hooks(find)))
        check_sites(self._config)
        _check_text(config, asked.batch_size)
        self._asked, self._mix_rows = asked, mix_rows
        model = self._model = load_model(config.model)
        self._sites = measured(model.module, sites_of(self._config, model))
        self._text = _Text(config, model)
        hooks = [site.hook_name for site in self._sites]
        self.identity = {
            "weights": model.record.weight_digest,
            "tokenizer": tokenizer_digest(model),
            "bos_token_id": model.bos_token_id,
            "harvest": {
                "data": config.data.identity,
                "context_size": config.context_size,
                "one_document_a_row": config.one_document_a_row,
                "dtype": config.dtype,
            },
            "hook_name": hooks[0],
            "hook_name_out": hooks[1] if hooks[1:] else None,
            "max_norm_multiple": asked.max_norm_multiple,
            "train_batch_size_tokens": asked.batch_size,
            "mix_rows": mix_rows,
            "shuffle_seed": asked.seed,
        }
        self.places = tuple(self._sites)
        self.buffer_bytes = 4 * mix_rows * sum(site.width for site in self._sites)
        about, bos = model.record, model.bos_token_id
        self.record = record_of_rows(
            about,
            config.data.record,
            config.context_size,
            bos,
            None,
            asked.max_norm_multiple,
        )
        self._folder = state_folder / f".stream-{digest(self.identity)}"

    def sample(self) -> Rows:
        return self._kept(self._first)

    def held_out(self, n_rows: int) -> Rows | None:
        blocks = (block for block in self._text.once() if block.held_out)
        found = joined(first_parts((self._kept(self._rows(b)) for b in blocks), n_rows))
        return tuple(x[:n_rows] for x in found) if len(found[0]) else None

    def batches(self, first: int) -> Generator[Rows, None, None]:
        """Give endless batches, from number `first` on; a thread computes until it is closed.

        One at a time: `save` is about the last one that was asked for.
        """
        self._buffer = MixingBuffer(self._mix_rows, self._asked.seed)
        self._position, self._n_given = Position(), first
        if first:
            self._load(first)
        return self._batches()

    def save(self, n_batches: int) -> None:
        if n_batches != self._n_given:
            raise ValueError(f"{self._n_given} batches were given, and not {n_batches}")
        state = {"position": astuple(self._position), "buffer": self._buffer.state_dict()}
        save_state(self._saved(n_batches), state)

    def forget(self) -> None:
        # Other turns of a sweep, and whoever extends a training, begin where theirs stopped.
        folders = self._folder.parent.iterdir()
        needed = {step for folder in folders for step in steps_saved(folder)}
        for path in self._folder.glob("stream_*.pt"):
            if int(path.stem.removeprefix("stream_")) not in needed:
                path.unlink()

    def _load(self, first: int) -> None:
        path = self._saved(first)
        anew = "remove the checkpoints of this training to start it anew"
        check_whole(path, anew)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self._position = Position(*state["position"])
            self._buffer.load_state_dict(state["buffer"])
        except FileNotFoundError as error:
            raise UserError(
                f"{path} is missing, and batch {first} cannot be made without it; {anew}"
            ) from error
        except Exception as error:
            raise UserError(f"{path} is damaged ({error}); {anew}") from error

    def _saved(self, n_batches: int) -> Path:
        return self._folder / f"stream_{n_batches:010d}.pt"

    def _batches(self) -> Generator[Rows, None, None]:
        def refusal(owner: str) -> UserError:
            return UserError(
                f"{self._folder.parent}: another process ({owner}) trains on the same rows; "
                "wait for it, choose another run=..., or train everything with one command"
            )

        def noted(blocks: Iterator[_Block]) -> Iterator[Rows]:
            for rows, self._position in blocks:
                yield rows

        stopped = threading.Event()
        computed = (
            (self._kept(self._rows(block)), after)
            for block, after in self._text.onwards(self._position, stopped)
        )
        with (
            only_process(self._folder / ".lock", refusal),
            closing(_ahead(computed, stopped, self._model.device)) as blocks,
        ):
            remove_unfinished(self._folder)
            if self._buffer.n_taken == 0:
                say(
                    f"train: {self._mix_rows:,} rows are computed before the first batch "
                    "can be drawn"
                )
            taken = noted(blocks)
            while True:
                rows = self._buffer.batch(taken, self._asked.batch_size)
                self._n_given += 1
                yield rows

    @cached_property
    def _first(self) -> Rows:
        """The text's first training rows, those with large norms included."""
        blocks = (block for block in self._text.once() if not block.held_out)
        found = joined(first_parts(map(self._rows, blocks), SAMPLE_ROWS))
        # Fewer than that are the whole text.
        if len(found[0]) < SAMPLE_ROWS:
            _check_enough(self._config, len(found[0]), self._asked.batch_size)
        return found

    @cached_property
    def _bound(self) -> float | None:
        if self._asked.max_norm_multiple is None:
            return None
        return self._asked.max_norm_multiple * float(_norms(self._first[0]).quantile(0.5))

    def _rows(self, block: RowBlock) -> Rows:
        """Return what a cache would hold of the text of some sequences."""
        there, model = block.documents >= 0, self._model
        (seen,) = activations(block.tokens, there, model, self._sites, len(block.tokens))
        keep = torch.from_numpy(there & ~np.isin(block.tokens, model.special_token_ids))
        stored = (to_stored(seen[site.hook_name], self._config.dtype) for site in self._sites)
        return tuple(from_stored(*x)[keep] for x in stored)

    def _kept(self, rows: Rows) -> Rows:
        if self._bound is None:
            return rows
        keep = _norms(rows[0]) <= self._bound
        return tuple(x[keep] for x in rows)


def _norms(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x.float(), dim=1)
    return norms


def _ahead(
    blocks: Generator[_Block, None, None], stopped: threading.Event, device: torch.device
) -> Generator[_Block, None, None]:
    """Give the blocks; a thread computes a few of them before they are taken.

    `stopped` is set at the end, for a block that is being made to be given up.
    """

    def take_own_stream() -> None:
        # What this thread computes on a GPU does not queue up behind what others do.
        if device.type == "cuda":
            torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]

    thread = ThreadPoolExecutor(1, "rows", take_own_stream)
    made = deque(thread.submit(next, blocks) for _ in range(_BLOCKS_AHEAD))
    try:
        while True:
            yield made.popleft().result()
            made.append(thread.submit(next, blocks))
    finally:
        stopped.set()
        thread.shutdown(cancel_futures=True)
        blocks.close()


def _check_text(config: Reading, batch_size: int) -> None:
    """Refuse, with the tokenizer alone, a text that cannot be read or does not fill a batch."""
    seen: set[int] = set()
    n = 0
    for document in encoded(config.data, load_tokenizer(config.model)):
        if isinstance(document, Unreadable):
            continue
        key, ids = document
        if key not in seen and not is_held_out(key, config.data.held_out_fraction):
            n += len(ids)
        seen.add(key)
        if n >= batch_size:
            return
    _check_enough(config, n, batch_size)


def _check_enough(config: Reading, n_rows: int, batch_size: int) -> None:
    require(
        n_rows >= batch_size,
        f"data.name={config.data.name} has {n_rows:,} rows to train on, less than one batch of "
        f"train_batch_size_tokens={batch_size:,}; give more text or a smaller batch",
    )
