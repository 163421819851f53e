"""Rows of a cache in random order: every row once an epoch, seeded, resumable by position.

Chunks come in a random order; as many as fit a pool are held in memory and their rows are
permuted together. With a pool that holds the whole cache (the default up to 2 GiB) this
is a uniform permutation of all rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

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


def rows_in_order(selection: RowSelection, limit: int | None = None) -> Iterator[Tensor]:
    """The rows chunk by chunk, (row, d_in), as stored; at most `limit`, evenly spread."""
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
            x = selection.cache.read(selection.hook_name, chunk)
            kept = np.flatnonzero(selection.keep[chunk])[first::step]
            # Chosen by index: a slice of all kept rows would hold all of them in memory.
            yield x.flatten(0, 1)[torch.from_numpy(kept)]


def shuffled_batches(
    selection: RowSelection,
    batch_size: int,
    *,
    seed: int,
    skip: int = 0,
    pool_bytes: int = 2 << 30,
) -> Iterator[Tensor]:
    """Endless batches (batch_size, d_in) as stored; the order depends on `seed` alone.

    Args:
        skip: batches to leave out at the start, without reading them: what a resumed run
            has seen already.
    """
    require(
        batch_size <= selection.n_rows,
        f"train_batch_size_tokens={batch_size} is larger than the cache, which has "
        f"{selection.n_rows} rows to train on",
    )
    # Checked here and not at the first batch, which may be asked for much later.
    return _batches(
        selection, batch_size, _pools(selection, seed, pool_bytes), skip * batch_size
    )


def _batches(
    selection: RowSelection,
    batch_size: int,
    pools: Iterator[tuple[list[slice], Tensor]],
    rows_to_skip: int,
) -> Iterator[Tensor]:
    rest: list[Tensor] = []
    waiting = 0
    for pool, order in pools:
        if rows_to_skip >= len(order):
            rows_to_skip -= len(order)
            continue
        rows = _read_pool(selection, pool)
        order = order[rows_to_skip:]
        rows_to_skip = 0
        start = 0
        while waiting + len(order) - start >= batch_size:
            take = order[start : start + batch_size - waiting]
            start += len(take)
            yield torch.cat([*rest, rows[take]]) if rest else rows[take]
            rest, waiting = [], 0
        if start < len(order):
            rest.append(rows[order[start:]])
            waiting += len(order) - start


def _pools(
    selection: RowSelection, seed: int, pool_bytes: int
) -> Iterator[tuple[list[slice], Tensor]]:
    """Endless pools: their chunks, and the order of the rows that these hold."""
    generator = torch.Generator().manual_seed(seed)
    chunks = selection.cache.chunks(selection.hook_name)
    counts = [int(selection.keep[c].sum()) for c in chunks]
    # The widest stored type has four bytes; an upper bound is enough here.
    chunk_bytes = max(counts) * selection.cache.d_in(selection.hook_name) * 4
    size = max(1, pool_bytes // max(1, chunk_bytes))
    while True:
        shuffled = torch.randperm(len(chunks), generator=generator).tolist()
        for i in range(0, len(shuffled), size):
            members = [j for j in shuffled[i : i + size] if counts[j]]
            n = sum(counts[j] for j in members)
            order = torch.randperm(n, generator=generator)
            yield [chunks[j] for j in members], order


def _read_pool(selection: RowSelection, pool: list[slice]) -> Tensor:
    parts = []
    for chunk in pool:
        x = selection.cache.read(selection.hook_name, chunk)
        parts.append(x[torch.from_numpy(selection.keep[chunk])])
    return torch.cat(parts)
