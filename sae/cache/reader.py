"""Rows of a cache in random order: every row once an epoch, seeded, resumable by position.

Chunks come in a random order; as many as fit a pool are held in memory and their rows are
permuted together. With a pool that holds the whole cache (the default up to 2 GiB) this
is a uniform permutation of all rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae.base.errors import require
from sae.cache.layout import ActivationCache


@dataclass(frozen=True, slots=True)
class RowSelection:
    """Which rows of one hook are read."""

    cache: ActivationCache
    hook_name: str
    keep: NDArray[np.bool_]
    """(sequence, position)."""

    @property
    def n_rows(self) -> int:
        """Rows an epoch."""
        return int(self.keep.sum())


def select_rows(
    cache: ActivationCache,
    hook_name: str,
    *,
    held_out: bool,
    max_norm_multiple: float | None = 10.0,
) -> RowSelection:
    """The training or the held-out rows, without special tokens and attention sinks.

    Args:
        max_norm_multiple: rows whose norm exceeds this multiple of the training rows'
            median are left out (None keeps them). Such rows stand at the first position and
            at few other tokens, and would rule every squared error.
    """
    keep = cache.text_rows() & (cache.held_out == held_out)[:, None]
    if max_norm_multiple is not None:
        median = cache.statistics(hook_name)["norm_quantiles"][50]
        keep &= cache.norms(hook_name) <= max_norm_multiple * median
    return RowSelection(cache, hook_name, keep)


Pair = tuple[Tensor, Tensor]
"""The same rows at two hooks: (row, d_in) at the selection's, (row, d_out) at the other."""


@overload
def rows_in_order(selection: RowSelection, limit: int | None = None) -> Iterator[Tensor]: ...
@overload
def rows_in_order(
    selection: RowSelection, limit: int | None = None, *, output_hook_name: str
) -> Iterator[Pair]: ...
@overload
def rows_in_order(
    selection: RowSelection, limit: int | None = None, *, output_hook_name: str | None
) -> Iterator[Tensor] | Iterator[Pair]: ...
def rows_in_order(
    selection: RowSelection, limit: int | None = None, *, output_hook_name: str | None = None
) -> Iterator[Tensor] | Iterator[Pair]:
    """The rows chunk by chunk, (row, d_in), as stored; at most `limit`, evenly spread.

    Args:
        output_hook_name: a second hook; pairs of the same rows at both are given then. Which
            rows these are is for the selection's own hook to say.
    """
    found = _in_order(selection, _hooks(selection, output_hook_name), limit)
    return _one(found) if output_hook_name is None else _two(found)


def _in_order(
    selection: RowSelection, hook_names: tuple[str, ...], limit: int | None
) -> Iterator[tuple[Tensor, ...]]:
    chunks = selection.cache.chunks(selection.hook_name)
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
                selection.cache.read(name, chunk).flatten(0, 1)[kept] for name in hook_names
            )


@overload
def shuffled_batches(
    selection: RowSelection,
    batch_size: int,
    *,
    seed: int,
    skip: int = 0,
    pool_bytes: int = 2 << 30,
) -> Iterator[Tensor]: ...
@overload
def shuffled_batches(
    selection: RowSelection,
    batch_size: int,
    *,
    seed: int,
    skip: int = 0,
    pool_bytes: int = 2 << 30,
    output_hook_name: str,
) -> Iterator[Pair]: ...
@overload
def shuffled_batches(
    selection: RowSelection,
    batch_size: int,
    *,
    seed: int,
    skip: int = 0,
    pool_bytes: int = 2 << 30,
    output_hook_name: str | None,
) -> Iterator[Tensor] | Iterator[Pair]: ...
def shuffled_batches(
    selection: RowSelection,
    batch_size: int,
    *,
    seed: int,
    skip: int = 0,
    pool_bytes: int = 2 << 30,
    output_hook_name: str | None = None,
) -> Iterator[Tensor] | Iterator[Pair]:
    """Endless batches (batch_size, d_in) as stored.

    The order depends on `seed` alone where one pool holds the whole cache, else on how many
    chunks a pool holds as well.

    Args:
        skip: batches to leave out at the start, without reading them: what a resumed run
            has seen already.
        pool_bytes: memory for the rows that are permuted together, of both hooks if two
            are read.
        output_hook_name: a second hook; pairs of the same rows at both are given then.
    """
    require(
        batch_size <= selection.n_rows,
        f"train_batch_size_tokens={batch_size} is larger than the cache, which has "
        f"{selection.n_rows} rows to train on",
    )
    hook_names = _hooks(selection, output_hook_name)
    # Checked here and not at the first batch, which may be asked for much later.
    pools = _pools(selection, hook_names, seed, pool_bytes)
    found = _batches(selection, hook_names, batch_size, pools, skip * batch_size)
    return _one(found) if output_hook_name is None else _two(found)


def _hooks(selection: RowSelection, output_hook_name: str | None) -> tuple[str, ...]:
    if output_hook_name is None:
        return (selection.hook_name,)
    return selection.hook_name, selection.cache.hook(output_hook_name)


def _one(found: Iterator[tuple[Tensor, ...]]) -> Iterator[Tensor]:
    return (x for (x,) in found)


def _two(found: Iterator[tuple[Tensor, ...]]) -> Iterator[Pair]:
    return ((x, y) for x, y in found)


def _batches(
    selection: RowSelection,
    hook_names: tuple[str, ...],
    batch_size: int,
    pools: Iterator[tuple[list[slice], Tensor]],
    rows_to_skip: int,
) -> Iterator[tuple[Tensor, ...]]:
    rest: list[tuple[Tensor, ...]] = []
    waiting = 0
    for pool, order in pools:
        if rows_to_skip >= len(order):
            rows_to_skip -= len(order)
            continue
        rows = [_read_pool(selection, name, pool) for name in hook_names]
        order = order[rows_to_skip:]
        rows_to_skip = 0
        start = 0
        while waiting + len(order) - start >= batch_size:
            take = order[start : start + batch_size - waiting]
            start += len(take)
            taken = tuple(x[take] for x in rows)
            yield tuple(map(torch.cat, zip(*rest, taken, strict=True))) if rest else taken
            rest, waiting = [], 0
        if start < len(order):
            rest.append(tuple(x[order[start:]] for x in rows))
            waiting += len(order) - start


def _pools(
    selection: RowSelection, hook_names: tuple[str, ...], seed: int, pool_bytes: int
) -> Iterator[tuple[list[slice], Tensor]]:
    """Endless pools: their chunks, and the order of the rows that these hold."""
    generator = torch.Generator().manual_seed(seed)
    chunks = selection.cache.chunks(selection.hook_name)
    counts = [int(selection.keep[c].sum()) for c in chunks]
    # The widest stored type has four bytes; an upper bound is enough here.
    chunk_bytes = max(counts) * sum(map(selection.cache.d_in, hook_names)) * 4
    size = max(1, pool_bytes // max(1, chunk_bytes))
    while True:
        shuffled = torch.randperm(len(chunks), generator=generator).tolist()
        for i in range(0, len(shuffled), size):
            members = [j for j in shuffled[i : i + size] if counts[j]]
            n = sum(counts[j] for j in members)
            order = torch.randperm(n, generator=generator)
            yield [chunks[j] for j in members], order


def _read_pool(selection: RowSelection, hook_name: str, pool: list[slice]) -> Tensor:
    parts = []
    for chunk in pool:
        x = selection.cache.read(hook_name, chunk)
        parts.append(x[torch.from_numpy(selection.keep[chunk])])
    return torch.cat(parts)
