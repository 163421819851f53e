"""How well dictionaries reconstruct cached rows."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sae.cache.reader import RowSelection, rows_in_order
from sae.core.metrics import ReconstructionStatistics
from sae.dictionary import Dictionary

_ROWS_A_BATCH = 4096


def reconstruction(
    dictionary: Dictionary, rows: RowSelection, limit: int | None = None
) -> ReconstructionStatistics:
    """Statistics of a dictionary over rows of a cache, at most about `limit`, evenly spread.

    Args:
        rows: which rows, at the hook that the dictionary reads. What a transcoder makes of them
            is compared with the same rows of its `hook_name_out`.
    """
    statistics = ReconstructionStatistics(dictionary.d_out, dictionary.d_sae)
    device = dictionary.W_enc.device
    for stored in _batches(_read(dictionary, rows, limit)):
        sides = [side.to(device).float() for side in stored]
        x, target = sides[0], sides[-1]
        feature_acts = dictionary.encode(x)
        statistics.add(target, dictionary.reconstruct(x, feature_acts), feature_acts)
    return statistics


def _read(
    dictionary: Dictionary, rows: RowSelection, limit: int | None
) -> Iterator[tuple[Tensor, ...]]:
    """Rows at the hook that the dictionary reads, and at the other if it has one."""
    if dictionary.is_transcoder:
        return rows_in_order(rows, limit, hook_name_out=dictionary.hook_name_out)
    return ((x,) for x in rows_in_order(rows, limit))


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
