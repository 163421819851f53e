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
    """Statistics of a dictionary over rows of a cache, at most about `limit`, evenly spread."""
    statistics = ReconstructionStatistics(dictionary.d_in, dictionary.d_sae)
    device = dictionary.W_enc.device
    for stored in _batches(rows_in_order(rows, limit)):
        x = stored.to(device).float()
        feature_acts = dictionary.encode(x)
        statistics.add(x, dictionary.decode(feature_acts), feature_acts)
    return statistics


def _batches(pieces: Iterator[Tensor]) -> Iterator[Tensor]:
    """Pieces joined and split to about the rows that one product should have."""
    waiting: list[Tensor] = []
    for piece in pieces:
        waiting.append(piece)
        if sum(map(len, waiting)) >= _ROWS_A_BATCH:
            yield from torch.split(torch.cat(waiting), _ROWS_A_BATCH)
            waiting = []
    if waiting:
        yield torch.cat(waiting)


def density_histogram(density: Tensor) -> dict[str, list[float]]:
    """Counts of live latents by log10 density, from 1e-6 to 1 in steps of a quarter."""
    edges = torch.linspace(-6, 0, 25, dtype=torch.float64)
    logs = torch.log10(density[density > 0].double()).clamp(-6, 0)
    counts = torch.histogram(logs, edges).hist
    return {"log10_edges": edges.tolist(), "counts": counts.tolist()}
