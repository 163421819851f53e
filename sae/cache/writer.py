"""Writing a cache so that it can be killed at any instant and resumed to the same bytes.

A cache is laid out empty, its text streamed in, and its chunks are filled in any order, the
activations of each last. A chunk is there if its file is; one that is missing or damaged is
computed again, so repairing is the same as resuming.
"""

import contextlib
import errno
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from torch import Tensor
from zarr.codecs import Crc32cCodec

from sae.base import UserError, require
from sae.cache.descriptions import damaged_descriptions, descriptions, groups_of, seal_of
from sae.cache.layout import (
    STATISTICS,
    TEXT,
    ActivationCache,
    chunk_key,
    chunk_slices,
    opened_array,
    written_rows,
)
from sae.cache.store import (
    explained_store_failures,
    open_group,
    remove_stored,
    stored_keys,
)
from sae.cache.stored import STORED_DTYPES, Stored, from_stored, to_stored
from sae.core.row_statistics import (
    QuantileSketch,
    merged_moments,
    norms_and_moments,
    split_moments,
)
from sae.core.scaling import SINK_NORM_MULTIPLE
from sae.models import ModelRecord
from sae.text.packing import TextPlan

_QUANTILES = 101
_BLOCK_VALUES = 1 << 18
# What no token and no document is; padding belongs to document -1.
NOT_WRITTEN = {"tokens": -1, "documents": -2}


class CacheWriter:
    """An unfinished cache, opened for filling."""

    def __init__(self, location: str | Path) -> None:
        self.location = location
        self.refresh()

    def refresh(self) -> None:
        """See what another process has written since."""
        self.group = open_group(self.location, "r+")
        self.attributes: dict[str, Any] = dict(self.group.attrs)
        self.hooks: list[str] = list(self.attributes.get("hooks", {}))
        self._arrays: dict[str, Any] = {}

    def array(self, name: str) -> Any:
        """Return one of the cache's arrays."""
        # Kept in hand: a thread may be writing while another one refreshes.
        arrays = self._arrays
        if name not in arrays:
            arrays[name] = opened_array(self.group, self.location, name)
        return arrays[name]

    @property
    def model(self) -> ModelRecord:
        """Which model the activations are of."""
        return ActivationCache(str(self.location), self.group).model

    @property
    def dtype(self) -> str:
        """Precision of what is stored."""
        return str(self.attributes["dtype"])

    @property
    def complete(self) -> bool:
        """Whether everything is written, statistics included."""
        return bool(self.attributes.get("complete"))

    @property
    def text_complete(self) -> bool:
        """Whether all tokens are written."""
        return bool(self.attributes.get("text_complete"))

    @property
    def plan(self) -> TextPlan:
        """Rows of each side: as planned, and once the text has ended as there are."""
        width = self.array("tokens").shape[1]
        return TextPlan(context_size=width, **self.attributes["rows"])

    @property
    def planned(self) -> TextPlan:
        """Rows of each side as they were asked for."""
        width = self.array("tokens").shape[1]
        return TextPlan(context_size=width, **self.attributes["planned_rows"])

    def chunks(self) -> list[slice]:
        """Sequences of each chunk."""
        return chunk_slices(self.plan.n_sequences, self._chunk_size)

    @property
    def _chunk_size(self) -> int:
        return int(self.array(f"activations/{self.hooks[0]}").chunks[0])

    def tokens(self, chunk: slice) -> NDArray[np.int32] | None:
        """Token ids of a chunk, (sequence, position); None while they are not all final.

        Held-out rows are final once the text is complete: they move up if it ends early.
        """
        if not self.text_complete and chunk.stop > self.plan.n_training:
            return None
        with explained_store_failures(self.location):
            try:
                found = np.asarray(self.array("tokens")[chunk])
            except ValueError:
                # Damaged since: whoever streams the text in puts it back.
                return None
            if bool((found == NOT_WRITTEN["tokens"]).any()):
                return None
            if not self.text_complete:
                # If the text has ended meanwhile, these may be held-out rows on their way up.
                now = open_group(self.location, "r").attrs
                if now["rows"] != self.attributes["rows"]:
                    return None
        return found

    def documents(self, chunk: slice) -> NDArray[np.int32]:
        """Document of each token of a chunk whose tokens are final; −1 for padding."""
        return self._text("documents", chunk)

    def _text(self, name: str, chunk: slice) -> NDArray[np.int32]:
        with explained_store_failures(self.location):
            try:
                found = np.asarray(self.array(name)[chunk])
            except ValueError as error:
                raise self.damaged_text() from error
        if bool((found == NOT_WRITTEN[name]).any()):
            # A chunk that is lost, which would pass for padding.
            raise self.damaged_text()
        return found

    def damaged_text(self) -> UserError:
        """Return what to say of text that was complete and does not read as it was written."""
        return UserError(
            f"{self.location}: its text is damaged; run the same harvest with verify=true, "
            "which repairs it"
        )

    def text_intact(self) -> bool:
        """Whether the text is complete and reads as it was written."""
        return self.text_complete and all(self._whole(name) for name in TEXT)

    def missing(self, *, verify: bool, rank: int = 0, n_ranks: int = 1) -> list[slice]:
        """Return the chunks that some hook has not got; with `verify` damaged ones as well.

        Of `n_ranks` processes that take turns with the chunks, those of number `rank`.
        """
        names = [f"{kind}/{hook}" for hook in self.hooks for kind in self._kinds()]
        there = {name: stored_keys(self.location, name) for name in names}
        mine = list(enumerate(self.chunks()))[rank::n_ranks]
        with explained_store_failures(self.location):
            return [
                chunk
                for i, chunk in mine
                if not all(chunk_key(self.array(name), i) in there[name] for name in names)
                or (verify and not all(self._reads(name, i, chunk) for name in names))
            ]

    def _reads(self, name: str, i: int, chunk: slice) -> bool:
        """Whether an array's part of chunk number `i` is there as it was written."""
        rows = slice(i, i + 1) if name.startswith("moments/") else chunk
        try:
            written_rows(self.group, self.location, name, rows)
        except (FileNotFoundError, ValueError):
            return False
        return True

    def _kinds(self) -> list[str]:
        """Arrays with a chunk for every chunk of activations; these come last."""
        scales = ["scales"] if self.dtype == "int8" else []
        return ["norms", "moments", *scales, "activations"]

    def empty(self) -> bool:
        """Whether no activations are there."""
        return not any(
            stored_keys(self.location, f"activations/{h}") - {"zarr.json"} for h in self.hooks
        )

    def intact(self, *, verify: bool) -> bool:
        """Whether the cache is complete; with `verify` whether all reads as written, too."""
        if not self.complete or not verify:
            return self.complete and not self.missing(verify=False)
        return (
            not self._damaged_descriptions()
            and self.text_intact()
            and all(self._whole(name) for name in self._statistics())
            and not self.missing(verify=True)
        )

    def _damaged_descriptions(self) -> list[str]:
        """Return which groups and statistics, that can be made anew, are not described whole.

        Of other arrays nothing tells what their chunks were.

        Raises:
            UserError: if the description of one of those is damaged.
        """
        damaged = damaged_descriptions(self.location, self.attributes)
        mendable = {*self._statistics(), *groups_of(self._all_arrays())}
        for name in damaged:
            require(
                name in mendable,
                f"{self.location}/{name}/zarr.json is damaged; remove the cache and make it "
                "again",
            )
        return damaged

    def _statistics(self) -> list[str]:
        return [f"statistics/{h}/{n}" for h in self.hooks for n in STATISTICS]

    def _all_arrays(self) -> list[str]:
        names = [f"{kind}/{hook}" for hook in self.hooks for kind in self._kinds()]
        return [*TEXT, *names, *self._statistics()]

    def _whole(self, name: str) -> bool:
        with explained_store_failures(self.location):
            try:
                array = opened_array(self.group, self.location, name)
                if array.nchunks_initialized < array.nchunks:
                    return False
                # Chunk by chunk: a text may be larger than the memory.
                for part in chunk_slices(array.shape[0], array.chunks[0]):
                    np.asarray(array[part])
            except ValueError:
                return False
        return True

    def write(self, chunk: slice, activations: dict[str, Tensor]) -> None:
        """Store one chunk of every hook: activations (sequence, position, d_in) by its name."""
        found = ((hook, to_stored(x, self.dtype)) for hook, x in activations.items())
        self.write_stored(chunk, found)

    def write_stored(self, chunk: slice, activations: Iterable[tuple[str, Stored]]) -> None:
        """Write like `write`, from arrays of the cache's dtype that are taken bit for bit."""
        i = chunk.start // self._chunk_size
        keep = self._training_rows(chunk)
        with explained_store_failures(self.location):
            for hook, (stored, scales) in activations:
                norms, moments = _row_statistics(stored, scales, keep)
                self.array(f"norms/{hook}")[chunk] = norms
                self.array(f"moments/{hook}")[i : i + 1] = moments[None]
                if scales is not None:
                    self.array(f"scales/{hook}")[chunk] = scales
                self.array(f"activations/{hook}")[chunk] = stored

    def _training_rows(self, chunk: slice) -> NDArray[np.bool_]:
        tokens = self._text("tokens", chunk)
        keep = ~np.isin(tokens, self.attributes["special_token_ids"])
        keep &= self.documents(chunk) >= 0
        keep[max(0, self.plan.n_training - chunk.start) :] = False
        return keep

    @contextlib.contextmanager
    def explained_full_disk(self) -> Iterator[None]:
        """Say of a disk that is full how many bytes are still needed."""
        try:
            with explained_store_failures(self.location):
                yield
        except UserError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
                left = sum(c.stop - c.start for c in self.missing(verify=False))
                widths = [self.array(f"activations/{hook}").shape[2] for hook in self.hooks]
                needed = bytes_needed(left * self.plan.context_size, widths, self.dtype)
                raise UserError(
                    f"{self.location}: the disk is full; {needed / 1e9:.3g} GB are still "
                    "needed: free some space and run the same command again, which keeps "
                    "what is finished"
                ) from cause
            raise

    def finish(self) -> None:
        """Reduce the statistics over all chunks and declare the cache complete."""
        with explained_store_failures(self.location):
            arrays = self._all_arrays()
            groups = groups_of(arrays)
            # What is damaged is never noted as what was written.
            for name in {*self._damaged_descriptions()} & {*groups}:
                remove_stored(self.location, f"{name}/zarr.json")
                self.group.require_group(name)
            about = {
                hook: {**known, "training_rows": self._write_statistics(hook)}
                for hook, known in self.attributes["hooks"].items()
            }
            found = descriptions(self.location, [*arrays, *groups])
            self.declare(hooks=about, descriptions=found, complete=True)

    def declare(self, **attributes: Any) -> None:
        """Change some of the cache's attributes, at once: its description is one file."""
        self.attributes.update(attributes)
        if self.complete:
            self.attributes["seal"] = attributes["seal"] = seal_of(self.attributes)
        # What `attrs.update` writes is a file for each of them, one after the other.
        self.group.update_attributes(attributes)

    def resize(self, n: int) -> None:
        """Make room for `n` sequences, or give up what is behind them."""
        n_chunks = len(chunk_slices(n, self._chunk_size))
        sizes = {"tokens": n, "documents": n}
        for hook in self.hooks:
            sizes |= {f"{k}/{hook}": n_chunks if k == "moments" else n for k in self._kinds()}
        for name, size in sizes.items():
            array = self.array(name)
            if array.shape[0] != size:
                array.resize((size, *array.shape[1:]))

    def _write_statistics(self, hook: str) -> dict[str, int]:
        moments = self.array(f"moments/{hook}")
        parts = (np.asarray(moments[p]) for p in chunk_slices(moments.shape[0], 64))
        count, mean, squares = split_moments(merged_moments(itertools.chain(*parts)))
        sketch = QuantileSketch()
        for chunk in self.chunks():
            norms = np.asarray(self.array(f"norms/{hook}")[chunk])
            sketch.add(norms[self._training_rows(chunk)])
        quantiles = sketch.quantiles(np.linspace(0, 1, _QUANTILES))
        values = (mean, squares / count, quantiles)
        for name, value in zip(STATISTICS, values, strict=True):
            store_whole(self.group, f"statistics/{hook}/{name}", value)
        return {
            "all": self.plan.n_training * self.plan.context_size,
            "text": int(count),
            "sinks": sketch.above(SINK_NORM_MULTIPLE * float(quantiles[50])),
        }


def _row_statistics(
    stored: NDArray[Any], scales: NDArray[np.float32] | None, keep: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    norms, moments = [], []
    # Some sequences at a time: as float32 they are to stay in the processor's cache.
    step = max(1, _BLOCK_VALUES // int(np.prod(stored.shape[1:])))
    for block in chunk_slices(len(stored), step):
        scale = None if scales is None else scales[block]
        rows = from_stored(stored[block], scale).float().numpy()
        found = norms_and_moments(rows.reshape(-1, rows.shape[2]), keep[block].reshape(-1))
        norms.append(found[0].reshape(keep[block].shape))
        moments.append(found[1])
    return np.concatenate(norms), merged_moments(moments)


ARRAY_SETTINGS: dict[str, Any] = {
    "filters": None,
    # Chunks lie side by side in one folder, `c.7.0.0`, and not in folders of their own.
    "chunk_key_encoding": {"name": "default", "separator": "."},
    "overwrite": True,
    # Zarr leaves out chunks of its fill value: one that got lost would read as written, and
    # to find out zarr would read chunks that are there.
    "config": {"write_empty_chunks": True},
}


def store_whole(group: zarr.Group, name: str, data: NDArray[Any]) -> None:
    """Store a small array that is read whole."""
    chunks = (min(len(data), 65_536), *data.shape[1:])
    codecs = [Crc32cCodec()]
    group.create_array(name, data=data, chunks=chunks, compressors=codecs, **ARRAY_SETTINGS)


def bytes_needed(n_tokens: int, widths: Iterable[int], dtype: str) -> int:
    """Return the size on disk of an uncompressed cache: activations, norms, scales and text."""
    size = np.dtype(STORED_DTYPES[dtype][0]).itemsize
    beside = 8 if dtype == "int8" else 4
    return n_tokens * (sum(width * size + beside for width in widths) + 8)
