"""Training rows straight from a model that runs beside the trainer; nothing is kept of them."""

import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import astuple, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sae.base import UserError, digest, only_process, plain, remove_unfinished, require, say
from sae.base.states import save_state, steps_saved
from sae.cache.stored import from_stored, to_stored
from sae.models import load_model, measured
from sae.rows.live_text import LiveText, Position, check_enough, check_text
from sae.rows.mixing import MixingBuffer
from sae.rows.reading import Reading, activations, check_sites, sites_of, tokenizer_digest
from sae.rows.shuffle import Rows, first_parts, joined
from sae.rows.source import SAMPLE_ROWS, RowSource, hooks_asked, record_of_rows
from sae.text.packing import RowBlock

# Two that wait and one that is computed.
_BLOCKS_AHEAD = 3

_Block = tuple[Rows, Position]
"""Rows of one forward pass, and the position of the one that comes next."""


class LiveRows(RowSource):
    """Rows of a model that computes while others train.

    They are those that a cache of the same text would give to training, in an order of its
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
        names = hooks_asked(hook_name, hook_name_out, partial(_named, config))
        self._config = replace(config, hook_names=list(names))
        check_sites(self._config)
        check_text(config, batch_size)
        self._batch_size, self._mix_rows, self._seed = batch_size, mix_rows, seed
        self._max_norm_multiple = max_norm_multiple
        model = self._model = load_model(config.model)
        self._sites = measured(model.module, sites_of(self._config, model))
        self._text = LiveText(config, model)
        hooks = [site.hook_name for site in self._sites]
        self.identity = {
            "weights": model.record.weight_digest,
            "tokenizer": tokenizer_digest(model),
            "bos_token_id": model.bos_token_id,
            "harvest": {
                "data": plain(config.data),
                "context_size": config.context_size,
                "one_document_a_row": config.one_document_a_row,
                "dtype": config.dtype,
            },
            "hook_name": hooks[0],
            "hook_name_out": hooks[1] if hooks[1:] else None,
            "max_norm_multiple": max_norm_multiple,
            "train_batch_size_tokens": batch_size,
            "mix_rows": mix_rows,
            "shuffle_seed": seed,
        }
        self.places = tuple(self._sites)
        about, bos = model.record, model.bos_token_id
        self.record = record_of_rows(about, config.data.record, config.context_size, bos, None)
        self._folder = state_folder / f".stream-{digest(self.identity)}"
        self._buffer = MixingBuffer(mix_rows, seed)
        self._position = Position()
        self._n_given = 0

    def sample(self) -> Rows:
        """Return the first training rows of the text."""
        return self._kept(self._first)

    def held_out(self, n_rows: int) -> Rows | None:
        """Return the first held-out rows of the text."""
        blocks = (block for block in self._text.once() if block.held_out)
        found = joined(first_parts((self._kept(self._rows(b)) for b in blocks), n_rows))
        return tuple(x[:n_rows] for x in found) if len(found[0]) else None

    def batches(self, first: int) -> Generator[Rows, None, None]:
        """Give endless batches, from number `first` on; a thread computes until it is closed.

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
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self._position = Position(*state["position"])
            self._buffer.load_state_dict(state["buffer"])
        except FileNotFoundError as error:
            raise UserError(
                f"{path} is not there, and without it batch {first} cannot be had; {anew}"
            ) from error
        except Exception as error:
            raise UserError(f"{path} is damaged ({error}); {anew}") from error

    def _saved(self, n_batches: int) -> Path:
        return self._folder / f"stream_{n_batches:010d}.pt"

    def _batches(self) -> Generator[Rows, None, None]:
        def refusal(owner: str) -> UserError:
            return UserError(
                f"{self._folder.parent}: another process ({owner}) trains on the same rows; "
                "wait for it, choose another run=..., or train it all by one command"
            )

        def noted(blocks: Iterator[_Block]) -> Iterator[Rows]:
            for rows, self._position in blocks:
                yield rows

        stopped = threading.Event()
        with (
            only_process(self._folder / ".lock", refusal),
            closing(_ahead(self._blocks(stopped), stopped, self._model.device)) as blocks,
        ):
            remove_unfinished(self._folder)
            if self._buffer.n_taken == 0:
                say(f"train: {self._mix_rows:,} rows are computed to draw the first batch from")
            taken = noted(blocks)
            while True:
                rows = self._buffer.batch(taken, self._batch_size)
                self._n_given += 1
                yield rows

    def _blocks(self, stopped: threading.Event) -> Generator[_Block, None, None]:
        for block, after in self._text.onwards(self._position, stopped):
            yield self._kept(self._rows(block)), after

    @cached_property
    def _first(self) -> Rows:
        """The text's first training rows, those with large norms included."""
        blocks = (block for block in self._text.once() if not block.held_out)
        found = joined(first_parts(map(self._rows, blocks), SAMPLE_ROWS))
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
        """What a cache would hold of the text of some sequences."""
        there, model = block.documents >= 0, self._model
        (seen,) = activations(
            block.tokens,
            there,
            model=model,
            sites=self._sites,
            batch_size=len(block.tokens),
        )
        keep = torch.from_numpy(there & ~np.isin(block.tokens, model.special_token_ids))
        stored = (to_stored(seen[site.hook_name], self._config.dtype) for site in self._sites)
        return tuple(from_stored(*x)[keep] for x in stored)

    def _kept(self, rows: Rows) -> Rows:
        if self._bound is None:
            return rows
        keep = _norms(rows[0]) <= self._bound
        return tuple(x[keep] for x in rows)


def _named(config: Reading, hook_name: str | None) -> str:
    require(
        hook_name is not None or len(config.hook_names) == 1,
        f"hook_name is not given, and harvest.hook_names={config.hook_names} names several; "
        "choose one",
    )
    return hook_name or config.hook_names[0]


def _norms(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x.float(), dim=1)
    return norms


def _ahead(
    blocks: Generator[_Block, None, None], stopped: threading.Event, device: torch.device
) -> Generator[_Block, None, None]:
    """The same blocks, a few of them computed by a thread before they are taken.

    Args:
        stopped: is set at the end, for a block that is being made to be given up.
    """
    thread = ThreadPoolExecutor(1, "rows", _take_own_stream, (device,))
    made = deque(thread.submit(next, blocks) for _ in range(_BLOCKS_AHEAD))
    try:
        while True:
            yield made.popleft().result()
            made.append(thread.submit(next, blocks))
    finally:
        stopped.set()
        thread.shutdown(cancel_futures=True)
        blocks.close()


def _take_own_stream(device: torch.device) -> None:
    """Have what this thread computes on a GPU not queue up behind what others do."""
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
