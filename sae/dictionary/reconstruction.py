"""How well a dictionary reconstructs rows, computed on active latents where they are few."""

import torch

from sae.core import Vectors
from sae.core.fidelity import ReconstructionStatistics
from sae.dictionary.dictionary import Dictionary

# Dense products are the faster ones above this share of active latents (benchmarks/encoding).
_SPARSE_BELOW = 1 / 16
# Rows that tell the share.
_SAMPLE = 64


def add_reconstruction(
    statistics: ReconstructionStatistics, dictionary: Dictionary, x: Vectors, target: Vectors
) -> None:
    """Count in what a dictionary makes of raw activations `x`, and how far `target` is off."""
    some = x[:: max(1, len(x) // _SAMPLE)]
    share = (dictionary.encode(some) > 0).sum(dtype=torch.float32) / (
        len(some) * dictionary.d_sae
    )
    if share < _SPARSE_BELOW:
        active = dictionary.encode_sparse(x)
        fired, total = active.support.counts(), active.values.sum(dtype=torch.float64)
        n_active = active.support.row_ends.diff()
        x_hat = dictionary.reconstruct_sparse(x, active)
    else:
        acts = dictionary.encode(x)
        # Rows first: a sum of everything in float64 would convert everything.
        fired, n_active = (acts > 0).sum(0), (acts > 0).sum(1)
        total = acts.sum(1).sum(dtype=torch.float64)
        x_hat = dictionary.reconstruct(x, acts)
    statistics.add(target, x_hat, fired, n_active, float(total))
