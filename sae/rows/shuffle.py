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
from jaxtyping import Int
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


def joined(parts: Iterable[Rows]) -> Rows:
    """Return the rows of several parts one after the other; without parts nothing."""
    return tuple(map(torch.cat, zip(*parts, strict=True)))


def first_parts(parts: Iterator[Rows], n_rows: int) -> list[Rows]:
    """Take parts up to the one that makes them `n_rows` rows or more, or all there are."""
    found: list[Rows] = []
    while n_rows > 0 and (part := next(parts, None)) is not None:
        found.append(part)
        n_rows -= len(part[0])
    return found


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

    def kept(self, chunk: slice) -> Int[Tensor, " row"]:
        """Return which rows of a chunk are read, counted from the chunk's first one."""
        return torch.from_numpy(np.flatnonzero(self.keep[chunk]))

    def check_batch(self, size: int) -> None:
        """Refuse a batch of more rows than there are."""
        require(
            size <= self.n_rows,
            f"train_batch_size_tokens={size} is larger than the cache, which has "
            f"{self.n_rows} rows to train on",
        )


def select_rows(
    cache: ActivationCache,
    *hook_names: str | None,
    held_out: bool,
    max_norm_multiple: float | None = SINK_NORM_MULTIPLE,
) -> RowSelection:
    """Select the training or the held-out rows, without special tokens and attention sinks.

    Args:
        hook_names: one or more, None for the only one; norms at the first decide which rows
            are sinks.
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
    step = 1 if limit is None else max(1, -(-selection.n_rows // limit))
    before = 0
    for chunk in selection.chunks:
        kept = selection.kept(chunk)
        # Every `step`-th row of them all: a chunk goes on where the one before it ended.
        chosen = kept[-before % step :: step]
        before += len(kept)
        if len(chosen):
            # Chosen by index: a slice of all kept rows would hold all of them in memory.
            yield tuple(
                selection.cache.read(name, chunk).flatten(0, 1)[chosen]
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
    selection.check_batch(batch_size)
    epochs, sizes = repeat(selection), repeat(batch_size)
    return batches_of_epochs(epochs, sizes, seed=seed, skip=skip, pool_bytes=pool_bytes)


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
    generator = torch.Generator().manual_seed(seed)
    pools = chain.from_iterable(
        _pools(selection, generator, pool_bytes) for selection in selections if selection.n_rows
    )
    left = iter(sizes)
    rows_to_skip = sum(islice(left, skip))
    return cut_batches(_read_ahead(_without(pools, rows_to_skip)), left)


def cut_batches(
    parts: Iterable[tuple[Rows, Int[Tensor, " row"]]], sizes: Iterator[int]
) -> Iterator[Rows]:
    """Give batches of given sizes, of the rows of one part after the other.

    Args:
        parts: rows, and the indices of those that are given, in the order to give them in.
    """
    rest: list[Rows] = []
    waiting = 0
    size = next(sizes, None)
    for rows, order in parts:
        start = 0
        while size is not None and waiting + len(order) - start >= size:
            take = order[start : start + size - waiting]
            start += len(take)
            taken = _taken(rows, take)
            yield joined([*rest, taken]) if rest else taken
            rest, waiting, size = [], 0, next(sizes, None)
        if start < len(order):
            rest.append(_taken(rows, order[start:]))
            waiting += len(order) - start


def _taken(rows: Rows, order: Tensor) -> Rows:
    return tuple(x.index_select(0, order.to(x.device)) for x in rows)


@dataclass(frozen=True, slots=True)
class _Pool:
    """Chunks that are held together, and the order in which their rows come."""

    selection: RowSelection
    chunks: list[slice]
    n_rows: int
    order: Tensor
    """Indices of rows, (row,); fewer than `n_rows` where some are skipped."""

    def holds_the_same(self, other: "_Pool") -> bool:
        return self.selection is other.selection and self.chunks == other.chunks


def _pools(
    selection: RowSelection, generator: torch.Generator, pool_bytes: int
) -> Iterator[_Pool]:
    """The pools of one epoch."""
    cache, chunks = selection.cache, selection.chunks
    counts = [int(selection.keep[c].sum()) for c in chunks]
    width = ROW_DTYPES[cache.dtype].itemsize * sum(map(cache.d_in, selection.hook_names))
    # Twice: the next pool is read while this one is used. One of all rows is read once.
    times = 1 if sum(counts) * width <= pool_bytes else 2
    most = max(1, pool_bytes // (times * max(counts) * width))
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


def _without(pools: Iterable[_Pool], rows: int) -> Iterator[_Pool]:
    """The pools without their first `rows` rows; what is left out is not read."""
    for pool in pools:
        if rows < len(pool.order):
            yield replace(pool, order=pool.order[rows:])
        rows = max(0, rows - len(pool.order))


def _read_ahead(pools: Iterator[_Pool]) -> Iterator[tuple[Rows, Tensor]]:
    """Rows and order of each pool; the next one is read by threads meanwhile."""
    threads = ThreadPoolExecutor(_READING_THREADS)
    coming, reading = next(pools, None), None
    try:
        while (pool := coming) is not None:
            rows, parts = reading = reading or _begin_reading(pool, threads)
            coming = next(pools, None)
            for part in parts:
                part.result()
            if coming is not None and not coming.holds_the_same(pool):
                reading = _begin_reading(coming, threads)
            yield rows, pool.order
    finally:
        threads.shutdown(cancel_futures=True)


def _begin_reading(pool: _Pool, threads: ThreadPoolExecutor) -> tuple[Rows, list[Future[None]]]:
    """Memory for the rows of a pool, and what is to be waited for until they are there."""
    cache, hook_names = pool.selection.cache, pool.selection.hook_names
    rows = tuple(
        torch.empty((pool.n_rows, cache.d_in(name)), dtype=ROW_DTYPES[cache.dtype])
        for name in hook_names
    )
    parts = []
    start = 0
    for chunk in pool.chunks:
        kept = pool.selection.kept(chunk)
        for name, x in zip(hook_names, rows, strict=True):
            place = x[start : start + len(kept)]
            parts.append(threads.submit(_read_rows, cache, name, chunk, kept, place))
        start += len(kept)
    return rows, parts


def _read_rows(
    cache: ActivationCache, hook_name: str, chunk: slice, kept: Tensor, place: Tensor
) -> None:
    torch.index_select(cache.read(hook_name, chunk).flatten(0, 1), 0, kept, out=place)
