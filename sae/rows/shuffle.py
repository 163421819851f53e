"""Rows of a cache in random order: every row once an epoch, seeded, resumable by position.

Chunks come in a random order; as many as fit a pool are held in memory and their rows are
permuted together, while threads read the next pool. A pool that holds the whole cache (the
default up to 2 GiB of rows) is a uniform permutation of all rows, and is read only once.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae.base import require
from sae.cache.layout import ActivationCache
from sae.cache.stored import ROW_DTYPES
from sae.core.scaling import SINK_NORM_MULTIPLE

# Threads wait for a disk or an object store, and for copies, which one core does fast enough.
_READING_THREADS = 4


Rows = tuple[Tensor, ...]
"""The same rows at one hook or more, (row, d_in) each."""


@dataclass(frozen=True, slots=True)
class RowSelection:
    """Which rows of which hooks are read."""

    cache: ActivationCache
    hook_names: tuple[str, ...]
    keep: NDArray[np.bool_]
    """(sequence, position)."""

    @property
    def n_rows(self) -> int:
        """Rows an epoch."""
        return int(self.keep.sum())

    @property
    def chunks(self) -> list[slice]:
        """The sequences of each chunk, in order."""
        return self.cache.chunks(self.hook_names[0])


def select_rows(
    cache: ActivationCache,
    *hook_names: str,
    held_out: bool,
    max_norm_multiple: float | None = SINK_NORM_MULTIPLE,
) -> RowSelection:
    """Select the training or the held-out rows, without special tokens and attention sinks.

    Args:
        hook_names: one or more; norms at the first one decide which rows are sinks.
        max_norm_multiple: rows whose norm exceeds this multiple of the training rows'
            median are left out (None keeps them). Such rows stand at the first position and
            at few other tokens, and would rule every squared error.

    Raises:
        UserError: if the cache does not hold one of the hooks.
    """
    names = tuple(map(cache.hook, hook_names))
    keep = cache.text_rows() & (cache.held_out == held_out)[:, None]
    if max_norm_multiple is not None:
        median = cache.statistics(names[0])["norm_quantiles"][50]
        keep &= cache.norms(names[0]) <= max_norm_multiple * median
    return RowSelection(cache, names, keep)


def rows_in_order(selection: RowSelection, limit: int | None = None) -> Iterator[Rows]:
    """Give the rows chunk by chunk, as stored; at most about `limit`, evenly spread."""
    chunks = selection.chunks
    counts = [int(selection.keep[c].sum()) for c in chunks]
    step = 1
    if limit is not None and sum(counts) > limit:
        step = -(-sum(counts) // limit)
    before = 0
    for chunk, count in zip(chunks, counts, strict=True):
        # Every `step`-th row of them all: a chunk goes on where the one before it ended.
        first = -before % step
        before += count
        if first < count:
            # Chosen by index: a slice of all kept rows would hold all of them in memory.
            kept = torch.from_numpy(np.flatnonzero(selection.keep[chunk])[first::step])
            yield tuple(
                selection.cache.read(name, chunk).flatten(0, 1)[kept]
                for name in selection.hook_names
            )


def shuffled_batches(
    selection: RowSelection,
    batch_size: int,
    *,
    seed: int,
    skip: int = 0,
    pool_bytes: int = 2 << 30,
) -> Iterator[Rows]:
    """Give endless batches, (batch_size, d_in) at each hook, as stored.

    The order depends on `seed` alone where one pool holds the whole cache, else on how many
    chunks a pool holds as well.

    Args:
        skip: batches to leave out at the start, without reading them: what a resumed run
            has seen already.
        pool_bytes: memory for rows, at all hooks: all of it if all rows fit; else half for
            those that are permuted together, half for those that come next.
    """
    require(
        batch_size <= selection.n_rows,
        f"train_batch_size_tokens={batch_size} is larger than the cache, which has "
        f"{selection.n_rows} rows to train on",
    )
    pools = _pools(repeat(selection), seed, pool_bytes)
    return _batches(repeat(batch_size), pools, skip * batch_size)


def batches_of_epochs(
    selections: Iterable[RowSelection],
    sizes: Iterable[int],
    *,
    seed: int,
    skip: int = 0,
    pool_bytes: int = 2 << 30,
) -> Iterator[Rows]:
    """Give batches of given sizes: the rows of one selection, then those of the next.

    With one selection for all epochs and one size the order is that of `shuffled_batches`.

    Args:
        selections: of the same cache and hooks, one for each epoch.
        sizes: rows of each batch; all of them together are the rows of the selections.
        skip: batches to leave out at the start, without reading them.
    """
    some = (s for s in selections if s.n_rows)
    first = next(some, None)
    if first is None:
        return iter(())
    left = iter(sizes)
    rows_to_skip = sum(islice(left, skip))
    return _batches(left, _pools(chain([first], some), seed, pool_bytes), rows_to_skip)


@dataclass(frozen=True, slots=True)
class _Pool:
    """Chunks that are held together, and the order in which their rows come."""

    selection: RowSelection
    chunks: list[slice]
    n_rows: int
    order: Tensor
    """Indices of rows, (row,); fewer than `n_rows` where some are skipped."""


def _batches(sizes: Iterator[int], pools: Iterator[_Pool], rows_to_skip: int) -> Iterator[Rows]:
    """The pools' rows in their order, cut into batches of these sizes."""
    rest: list[Rows] = []
    waiting = 0
    size = next(sizes, None)
    for rows, order in _read_ahead(_without(pools, rows_to_skip)):
        start = 0
        while size is not None and waiting + len(order) - start >= size:
            take = order[start : start + size - waiting]
            start += len(take)
            taken = tuple(x.index_select(0, take) for x in rows)
            yield tuple(map(torch.cat, zip(*rest, taken, strict=True))) if rest else taken
            rest, waiting, size = [], 0, next(sizes, None)
        if start < len(order):
            rest.append(tuple(x.index_select(0, order[start:]) for x in rows))
            waiting += len(order) - start


def _pools(selections: Iterable[RowSelection], seed: int, pool_bytes: int) -> Iterator[_Pool]:
    """Pools of one epoch after the other: their chunks, and the order of their rows."""
    generator = torch.Generator().manual_seed(seed)
    for selection in selections:
        yield from _epoch(selection, generator, pool_bytes)


def _epoch(
    selection: RowSelection, generator: torch.Generator, pool_bytes: int
) -> Iterator[_Pool]:
    cache, chunks = selection.cache, selection.chunks
    counts = [int(selection.keep[c].sum()) for c in chunks]
    width = ROW_DTYPES[cache.dtype].itemsize * sum(map(cache.d_in, selection.hook_names))
    # Twice: the next pool is read while this one is used. One of all rows is read once.
    times = 1 if sum(counts) * width <= pool_bytes else 2
    most = max(1, pool_bytes // max(1, times * max(counts) * width))
    # All alike, as a small one in the end would mix little.
    size = len(chunks) if times == 1 else -(-len(chunks) // -(-len(chunks) // most))
    # A pool of all chunks keeps them in their order, so that the next epoch has them already.
    offsets = np.cumsum([0, *counts])
    shuffled = torch.randperm(len(chunks), generator=generator).tolist()
    for i in range(0, len(shuffled), size):
        members = [j for j in shuffled[i : i + size] if counts[j]]
        n = sum(counts[j] for j in members)
        order = torch.randperm(n, generator=generator)
        if size >= len(chunks):
            parts = [torch.arange(offsets[j], offsets[j + 1]) for j in members]
            order = torch.cat(parts)[order]
            members = [j for j in range(len(chunks)) if counts[j]]
        yield _Pool(selection, [chunks[j] for j in members], n, order)


def _without(pools: Iterator[_Pool], rows: int) -> Iterator[_Pool]:
    """The pools without their first `rows` rows; what is left out is not read."""
    for pool in pools:
        if rows < len(pool.order):
            yield replace(pool, order=pool.order[rows:])
        rows = max(0, rows - len(pool.order))


def _read_ahead(pools: Iterator[_Pool]) -> Iterator[tuple[Rows, Tensor]]:
    """Rows and order of each pool; the next one is read by threads meanwhile."""
    pool = next(pools, None)
    if pool is None:
        return
    with ThreadPoolExecutor(_READING_THREADS) as threads:
        reading = _Reading(pool, threads)
        try:
            for coming in pools:
                rows = reading.rows()
                same = coming.selection is pool.selection and coming.chunks == pool.chunks
                if not same:
                    reading = _Reading(coming, threads)
                yield rows, pool.order
                pool = coming
            yield reading.rows(), pool.order
        finally:
            reading.cancel()


class _Reading:
    """The selected rows of a pool's chunks on their way into memory."""

    def __init__(self, pool: _Pool, threads: ThreadPoolExecutor) -> None:
        cache, hook_names = pool.selection.cache, pool.selection.hook_names
        self._rows = tuple(
            torch.empty((pool.n_rows, cache.d_in(name)), dtype=ROW_DTYPES[cache.dtype])
            for name in hook_names
        )
        self._parts: list[Future[None]] = []
        start = 0
        for chunk in pool.chunks:
            kept = torch.from_numpy(np.flatnonzero(pool.selection.keep[chunk]))
            for name, rows in zip(hook_names, self._rows, strict=True):
                place = rows[start : start + len(kept)]
                self._parts.append(threads.submit(_read_rows, cache, name, chunk, kept, place))
            start += len(kept)

    def rows(self) -> Rows:
        """(row, d_in) at each hook, once all are there."""
        for part in self._parts:
            part.result()
        return self._rows

    def cancel(self) -> None:
        """Read no further."""
        for part in self._parts:
            part.cancel()


def _read_rows(
    cache: ActivationCache, hook_name: str, chunk: slice, kept: Tensor, place: Tensor
) -> None:
    torch.index_select(cache.read(hook_name, chunk).flatten(0, 1), 0, kept, out=place)
