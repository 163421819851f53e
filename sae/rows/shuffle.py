"""Rows in random order, seeded: those of a cache, or those that come in an order of their own.

As many chunks as fit a pool are held in memory and their rows permuted together, while threads
read the next pool. A pool that holds the whole cache is read only once.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from typing import Any

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
POOL_BYTES = 2 << 30
"""Memory for rows of a cache that are permuted together."""


Rows = tuple[Tensor, ...]
"""Activations of some tokens at one hook or more, a tensor (row, d_in) for each hook."""


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
    def n_bytes(self) -> int:
        """Memory that all of them take, as they are stored."""
        width = sum(map(self.cache.d_in, self.hook_names))
        return self.n_rows * width * ROW_DTYPES[self.cache.dtype].itemsize

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

    Sinks are rows whose norm at the first hook exceeds a multiple of the training rows' median;
    None keeps them. They stand at the first position and at few other tokens, and would rule
    every squared error. A hook that is None is the cache's only one.
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
    pool_bytes: int = POOL_BYTES,
) -> Iterator[Rows]:
    """Give endless batches, (batch_size, d_in) at each hook, as stored.

    The order depends on `seed` alone where one pool holds the whole cache, else on how many
    chunks a pool holds as well. The first `skip` batches, which a resumed run has seen already,
    are left out without reading them. `pool_bytes` of memory hold all rows at all hooks if they
    fit, else half of it those permuted together, and half those that come next.
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
    pool_bytes: int = POOL_BYTES,
) -> Iterator[Rows]:
    """Give batches of given sizes: the rows of one selection, then those of the next.

    Selections are of the same cache and hooks, one for each epoch; the sizes of all batches
    together are the rows of the selections. With one selection for all epochs and one size the
    order is that of `shuffled_batches`.
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
    """Give batches of given sizes, of rows of one part after the other, picked by indices."""
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


def _pools(
    selection: RowSelection, generator: torch.Generator, pool_bytes: int
) -> Iterator[_Pool]:
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
            if coming is not None:
                same = coming.selection is pool.selection and coming.chunks == pool.chunks
                reading = reading if same else _begin_reading(coming, threads)
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

    def read(name: str, chunk: slice, kept: Tensor, place: Tensor) -> None:
        torch.index_select(cache.read(name, chunk).flatten(0, 1), 0, kept, out=place)

    parts = []
    start = 0
    for chunk in pool.chunks:
        kept = pool.selection.kept(chunk)
        for name, x in zip(hook_names, rows, strict=True):
            place = x[start : start + len(kept)]
            parts.append(threads.submit(read, name, chunk, kept, place))
        start += len(kept)
    return rows, parts


class MixingBuffer:
    """Holds some rows, and gives batches drawn from them; those that follow take their place.

    Every row is given exactly once. Which batch it comes in is decided by the seed and the
    order of the rows alone, not by the blocks that they come in or by when these come.
    """

    def __init__(self, capacity: int, seed: int) -> None:
        self.capacity = capacity
        self.n_taken = 0
        """Number of rows that it took so far."""
        self._generator = torch.Generator().manual_seed(seed)
        self._held: Rows | None = None
        # Slots whose rows were given, in the order in which they are filled.
        self._free = torch.arange(capacity)
        # What is left of the last block.
        self._rest: Rows | None = None

    def batch(self, blocks: Iterator[Rows], size: int) -> Rows:
        """Return `size` random rows of those held, once the slots of the last batch are filled.

        They are filled from endless blocks, of which what is left is kept for the next batch.
        """
        while len(self._free):
            rows = next(blocks) if self._rest is None else self._rest
            if self._held is None:
                self._held = tuple(x.new_empty((self.capacity, *x.shape[1:])) for x in rows)
            n = min(len(self._free), len(rows[0]))
            for held, x in zip(self._held, rows, strict=True):
                held[self._free[:n]] = x[:n]
            self._free = self._free[n:]
            self.n_taken += n
            # Copied, so that a view does not keep the whole block.
            self._rest = tuple(x[n:].clone() for x in rows) if n < len(rows[0]) else None
        assert self._held is not None
        self._free = self._draw(size)
        return tuple(held.index_select(0, self._free) for held in self._held)

    def state_dict(self) -> dict[str, Any]:
        """Return all there is; write it before the next batch, which changes the same rows."""
        return {
            "held": self._held,
            "free": self._free,
            "rest": self._rest,
            "n_taken": self.n_taken,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned: with the block after the last one taken."""
        self._held, self._free, self._rest = state["held"], state["free"], state["rest"]
        self.n_taken = state["n_taken"]
        self._generator.set_state(state["generator"])

    def _draw(self, size: int) -> Tensor:
        """Different slots: uniform, in time that does not grow with the capacity."""
        require(
            size <= self.capacity,
            f"a batch of {size} rows is more than the {self.capacity} rows held",
        )
        if 2 * size > self.capacity:
            return torch.randperm(self.capacity, generator=self._generator)[:size]
        found = np.zeros(0, dtype=np.int64)
        while len(found) < size:
            more = torch.randint(self.capacity, (2 * size,), generator=self._generator)
            drawn = np.concatenate([found, more.numpy()])
            # The first so many different ones of a sequence of draws.
            _, first = np.unique(drawn, return_index=True)
            found = drawn[np.sort(first)]
        return torch.from_numpy(found[:size])
