"""What a cache's entries say of every feature: figures, tokens, contexts, kin."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sae.analysis.shards import (
    BLOCK_ENTRIES,
    Entries,
    Shard,
    Text,
    TokenEntries,
    blocks,
    entry_counts,
    read_by_token,
    read_entries,
)
from sae.analysis.work import Arrays, Work
from sae.atlas import N_BANDS, N_LISTED
from sae.base import progress
from sae.core import panel_kernels
from sae.core.cpu_kernels import use_threads

PAIR_BYTES = 256 << 20
"""Memory for the counts and products of some features with all others."""
GROUP_ENTRIES = 64 << 20
"""Entries by token that are held at once: 512 MB."""


@dataclass(frozen=True, slots=True)
class ContextSelection:
    """Which contexts of a feature to keep, and the tokens on either side of each."""

    n_top: int
    n_band: int
    """Peaks drawn from each of `N_BANDS` bands."""
    n_silent: int
    radius: int
    seed: int


def feature_panels(
    selection: ContextSelection, shards: list[Shard], text: Text, work: Work
) -> list[tuple[slice, str]]:
    """Look at every feature's entries, block by block.

    Returns:
        The features of each block, and under which name `work` keeps what `_panel` found.
    """
    counts = entry_counts(shards, work)
    found = []
    with progress(len(counts), "panels", "feature") as bar:
        for i, features in enumerate(blocks(counts, BLOCK_ENTRIES, len(counts))):
            name = f"panel-{i:05d}"
            if not work.has(name):
                entries = read_entries(features, counts, shards, work)
                work.save(name, _panel(selection, entries, text))
            found.append((features, name))
            bar.update(features.stop - features.start)
    return found


def _panel(selection: ContextSelection, entries: Entries, text: Text) -> Arrays:
    """Arrays with a row a feature of one block.

    `moments` are sum, sum of squares, highest and spread; `top_document` counts entries in the
    document that has most; `chosen` are the tokens of contexts, −1 for none: the top ones, then
    the bands from high to low, then the silent ones.
    """
    n, first, threads = len(entries.ends) - 1, entries.features.start, use_threads()
    where, values = (entries.ends, entries.tokens), entries.values
    moments = np.zeros((n, 4))
    histogram = np.zeros((n, panel_kernels.HISTOGRAM_BINS), np.int64)
    panel_kernels.moments(entries.ends, values, moments, histogram)
    positions = np.zeros((n, panel_kernels.POSITION_BINS), np.int64)
    panel_kernels.position_counts(*where, text.context_size, positions)
    ids = np.full((n, panel_kernels.MOST_TOKENS), -1)
    id_counts = np.zeros(ids.shape, np.int64)
    distinct = np.zeros(n, np.int64)
    sizes = np.array([len(text.counts), threads])
    panel_kernels.occurrences(*where, text.tokens, sizes, ids, id_counts, distinct)
    document, document_counts = np.full((n, 1), -1), np.zeros((n, 1), np.int64)
    sizes = np.array([text.document_end, threads])
    panel_kernels.occurrences(
        *where, text.documents, sizes, document, document_counts, distinct
    )
    settings = np.array([text.context_size, selection.radius, selection.seed])
    top = np.full((n, selection.n_top), -1)
    panel_kernels.top_entries(*where, values, text.context_size, top)
    bands = np.full((n, N_BANDS, selection.n_band), -1)
    if selection.n_band:
        highest = moments[:, 2].copy()
        panel_kernels.band_entries(*where, values, highest, settings, first, bands)
    silent = np.full((n, selection.n_silent), -1)
    panel_kernels.silent_tokens(*where, text.documents, settings, first, silent)
    chosen = np.concatenate([top, bands[:, ::-1].reshape(n, -1), silent], axis=1)
    activations = np.zeros((*chosen.shape, 2 * selection.radius + 1), np.float32)
    panel_kernels.stretches(*where, values, text.context_size, chosen, activations)
    return {
        "n_active": np.diff(entries.ends),
        "moments": moments,
        "histogram": histogram,
        "positions": positions,
        "top_token_ids": ids,
        "top_token_counts": id_counts,
        "n_documents": distinct,
        "top_document": document_counts[:, 0],
        "chosen": chosen,
        "activations": activations,
    }


def related_features(
    shards: list[Shard], text: Text, panels: list[tuple[slice, str]], work: Work
) -> Arrays:
    """Find for every feature the others that it is most correlated with and fires most with.

    Returns:
        `correlated` and `correlations`, `coactive`, `coactive_counts` and `overlaps`
        (Jaccard), each (d_sae, N_LISTED); −1 where there are fewer.
    """
    counts = entry_counts(shards, work)
    moments = np.concatenate([work.open(name).read("moments") for _, name in panels])
    sizes = np.array([work.open(shard.name).length("columns") for shard in shards])
    groups = blocks(sizes, GROUP_ENTRIES, len(sizes))

    # If they are one group it is read once.
    @lru_cache(maxsize=1 if len(groups) == 1 else 0)
    def entries_by_token(start: int, stop: int) -> TokenEntries:
        return read_by_token(shards[start:stop], work)

    found = []
    most = max(1, PAIR_BYTES // (12 * len(counts)))
    with progress(len(counts), "co-activation", "feature") as bar:
        for i, features in enumerate(blocks(counts, BLOCK_ENTRIES, most)):

            def compute(features: slice = features) -> Arrays:
                entries = read_entries(features, counts, shards, work)
                by_token = (entries_by_token(group.start, group.stop) for group in groups)
                return _related_to(entries, by_token, counts, moments, text.n_rows)

            found.append(work.once(f"related-{i:05d}", compute))
            bar.update(features.stop - features.start)
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def _related_to(
    entries: Entries,
    groups: Iterable[TokenEntries],
    counts: NDArray[np.int64],
    moments: NDArray[np.float64],
    n_rows: int,
) -> Arrays:
    use_threads()
    n, d_sae = len(entries.ends) - 1, len(counts)
    together = np.zeros((n, d_sae), np.int32)
    products = np.zeros((n, d_sae))
    for group in groups:
        panel_kernels.coactivate(
            entries.ends,
            entries.tokens,
            entries.values,
            group.first_token,
            group.row_ends,
            group.columns.view(np.uint32),
            group.values,
            together,
            products,
        )
    correlated, coactive = np.full((2, n, N_LISTED), -1)
    correlations, overlaps = np.zeros((2, n, N_LISTED))
    panel_kernels.strongest_pairs(
        entries.features.start,
        n_rows,
        counts,
        moments[:, 0].copy(),
        moments[:, 1].copy(),
        together,
        products,
        correlated,
        correlations,
        coactive,
        overlaps,
    )
    return {
        "correlated": correlated,
        "correlations": correlations,
        "coactive": coactive,
        "coactive_counts": np.take_along_axis(together, coactive.clip(0), 1),
        "overlaps": overlaps,
    }
