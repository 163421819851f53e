"""Meta-dictionary: how far a dictionary's own directions are made of a few common parts.

A small BatchTopK dictionary is trained on the unit rows of `W_dec` (Leask and others 2025,
arXiv 2502.04878, and SAEBench's `meta_structure`). What it explains is measured on the very
rows that it was trained on, as there are no others; so the same training on random directions
of the same covariance says how much of it is fitting and how much is shape.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae.architectures import BatchTopKConfig
from sae.core.nulls import correlated_directions
from sae.core.scaling import InputScaling
from sae.dictionary import Dictionary
from sae.evaluation.averages import mean_finding
from sae.findings import Finding

ACTIVE = 4
"""Meta-features that are active on a direction on average, as in SAEBench."""
SHARE = 4
"""The dictionary is that many times as wide as its meta-dictionary, as in SAEBench."""
_STEPS, _BATCH, _LR = 300, 512, 1e-2
_FEWEST = 2 * ACTIVE

Directions = Float[Tensor, "n d"]


def meta_dictionary(dictionary: Dictionary, *, seed: int = 0) -> list[Finding]:
    """Return the share of decoder directions' variance that a dictionary of them explains."""
    key = "meta_explained_variance"
    rows = dictionary.W_dec.detach().float().cpu()
    rows = rows[rows.any(1)]
    if len(rows) // SHARE < _FEWEST:
        why = f"it has {len(rows)} features, and a quarter of them is too few to train on"
        return [Finding(key=key, why_not=why)]
    unit = nn.functional.normalize(rows, dim=1)
    null = correlated_directions(len(unit), unit, seed)
    floor = explained(null, seed).mean()
    return [
        mean_finding(
            key,
            explained(unit, seed),
            unit="features",
            floor=float(floor),
            floor_of="random directions of the same covariance",
        )
    ]


def explained(rows: Directions, seed: int = 0) -> Float[Tensor, " n"]:
    """Return 1 − ‖d − d̂‖² / mean ‖d − d̄‖² of each row; their mean is what is explained."""
    scaling = InputScaling.of(rows)
    x = scaling(rows)
    generator = torch.Generator().manual_seed(seed)
    sae = BatchTopKConfig(d_sae=len(rows) // SHARE, k=ACTIVE).build(x, generator)
    silent = torch.zeros(sae.d_sae, dtype=torch.long)
    optimizer = torch.optim.Adam(
        [
            {"params": [parameter], "lr": _LR * sae.lr_factors.get(name, 1.0)}
            for name, parameter in sae.named_parameters()
        ],
        fused=True,
    )
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, _share)
    for step in range(_STEPS):
        batch = x[torch.randint(len(x), (min(_BATCH, len(x)),), generator=generator)]
        optimizer.zero_grad()
        found = sae.step(batch, batch, step / _STEPS, silent > _STEPS // 10)
        torch.autograd.backward(found.loss)
        optimizer.step()
        rate.step()
        sae.W_dec.data = nn.functional.normalize(sae.W_dec.data, dim=1)
        silent = torch.where(found.fired > 0, 0, silent + 1)
    with torch.no_grad():
        error = (sae.dictionary(scaling, scaling)(rows) - rows).square().sum(1)
    return 1 - error / (rows - rows.mean(0)).square().sum(1).mean()


def _share(step: int) -> float:
    """Return the share of the peak rate: up over a twentieth, down over the last fifth."""
    return min(1.0, (step + 1) / (_STEPS // 20), (_STEPS - step) / (_STEPS // 5))
