"""How well dictionaries reconstruct cached rows."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sae.cache.layout import ActivationCache
from sae.core.fidelity import ReconstructionStatistics
from sae.dictionary import Dictionary
from sae.rows.shuffle import RowSelection, rows_in_order, select_rows

_ROWS_A_BATCH = 4096


def measured_rows(
    dictionary: Dictionary, cache: ActivationCache, *, held_out: bool
) -> RowSelection:
    """Select the rows of a cache on which a dictionary is measured, at the hooks that it has.

    Rows that its training left out for their norm are left out here too.
    """
    return select_rows(
        cache,
        *dict.fromkeys(dictionary.hook_names),
        held_out=held_out,
        max_norm_multiple=dictionary.record.max_norm_multiple,
    )


def reconstruction(
    dictionary: Dictionary, rows: RowSelection, limit: int | None = None
) -> ReconstructionStatistics:
    """Statistics of a dictionary over rows of a cache, at most about `limit`, evenly spread.

    Args:
        rows: at the hook that the dictionary reads, and for a transcoder at the one that it
            reconstructs.
    """
    statistics = ReconstructionStatistics(dictionary.d_out, dictionary.d_sae)
    device = dictionary.W_enc.device
    for stored in _batches(rows_in_order(rows, limit)):
        sides = [side.to(device).float() for side in stored]
        x, target = sides[0], sides[-1]
        feature_acts = dictionary.encode(x)
        statistics.add(target, dictionary.reconstruct(x, feature_acts), feature_acts)
    return statistics


def _batches(pieces: Iterator[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """Pieces joined and split to about the rows that one product should have."""
    waiting: list[tuple[Tensor, ...]] = []
    for piece in pieces:
        waiting.append(piece)
        if sum(len(sides[0]) for sides in waiting) >= _ROWS_A_BATCH:
            joined = map(torch.cat, zip(*waiting, strict=True))
            yield from zip(*(torch.split(j, _ROWS_A_BATCH) for j in joined), strict=True)
            waiting = []
    if waiting:
        yield tuple(map(torch.cat, zip(*waiting, strict=True)))
