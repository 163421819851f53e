"""Feature absorption: others carry what a concept's own features should (arXiv 2409.14507).

The rules are those of SAEBench 0.6, `feature_absorption_calculator.py`. For one row x that a
probe with direction p (of norm one) tells the concept of: feature j with activation f and unit
decoder direction d carries `f · ⟨p, d⟩`, the concept's main features carry M together, the
whole row P = ⟨x, p⟩, and the three strongest others that point along p carry A.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_SILENT = 1e-8
_POINTS_ALONG = 0.1
"""Cosine with p from which a feature may absorb a part."""
_FULL_POINTS_ALONG = 0.025
"""The same where one feature is to carry it all."""
_MUCH = 0.4
"""Share of P that absorbing features have to carry."""
_MOST_ABSORBING = 3


@dataclass(frozen=True, slots=True)
class Absorbed:
    """Share of a concept that other features carry in place of its own, for each row."""

    fraction: Float[Tensor, " row"]
    """a / (a + M) with a = min(A, P − M): 0 where main features carry all or others little."""
    full: Bool[Tensor, " row"]
    """Whether main features are silent and one other feature carries the concept."""


def absorbed(
    x: Float[Tensor, "row d"],
    lengths: Float[Tensor, "row d_sae"],
    decoder: Float[Tensor, "d_sae d"],
    direction: Float[Tensor, " d"],
    main: Int[Tensor, " main"],
) -> Absorbed:
    """Return how far a concept is absorbed in rows that have it.

    Args:
        x: rows.
        lengths: feature activations times the norms of their decoder rows.
        decoder: decoder rows, of any norm.
        direction: of the probe, of any norm.
        main: the concept's own features.
    """
    unit = torch.nn.functional.normalize
    p = unit(direction.double(), dim=0)
    cosine = unit(decoder.double(), dim=1) @ p
    carried = lengths.double() * cosine
    whole, own = x.double() @ p, carried[:, main].sum(1)
    may_absorb = cosine >= _POINTS_ALONG
    may_absorb[main] = False
    others = torch.where(may_absorb & (carried > 0), carried, 0)
    most = min(_MOST_ABSORBING, others.shape[1])
    much = others.topk(most, dim=1).values.sum(1)
    part = torch.minimum(much, whole - own)
    fraction = torch.where(own <= 0, 1.0, part / (part + own))
    none = (own >= whole) | (much / whole < _MUCH)
    strongest, which = carried.max(1)
    full = (
        (lengths[:, main] < _SILENT).all(1)
        & (cosine[which] >= _FULL_POINTS_ALONG)
        & (whole >= 0)
        & (strongest / whole >= _MUCH)
    )
    return Absorbed(torch.where(none, 0.0, fraction).clamp(0, 1), full)
