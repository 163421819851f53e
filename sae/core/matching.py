"""Which direction of one dictionary is which of another: the best one-to-one match.

Used for two seeds of a training (stability) and for a dictionary against a known truth.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Directions = Float[Tensor, "n width"]
"""Directions, a row each; their lengths are of no account."""


@dataclass(frozen=True, slots=True)
class Match:
    """Pairs of directions, as many as the smaller set has, in the order of the first set."""

    first: Int[Tensor, " pair"]
    second: Int[Tensor, " pair"]
    cosine: Float[Tensor, " pair"]
    """Cosine of each pair; signs are kept where they count, and are lost otherwise."""

    @property
    def mean(self) -> float:
        """The mean cosine of the pairs: MCC, the mean correlation coefficient."""
        return float(self.cosine.double().mean())


def cosines(first: Directions, second: Directions) -> Float[Tensor, "first second"]:
    """Return the cosine of each direction of one set with each of another.

    A row of zeros has no direction, and cosine 0 with everything.
    """
    unit = torch.nn.functional.normalize
    return unit(first.float(), dim=1) @ unit(second.float(), dim=1).t()


def matched(similarity: Float[Tensor, "first second"]) -> Match:
    """Return the one-to-one pairs whose similarities add up to most (the Hungarian method)."""
    from scipy.optimize import linear_sum_assignment

    first, second = linear_sum_assignment(similarity.double().cpu().numpy(), maximize=True)
    rows, columns = torch.from_numpy(first), torch.from_numpy(second)
    return Match(rows, columns, similarity.cpu()[rows, columns])


def match_directions(first: Directions, second: Directions, *, signed: bool = False) -> Match:
    """Return the pairs of directions whose cosines add up to most.

    Args:
        signed: whether a direction and its opposite are different things. Without it the
            absolute cosine counts, as in MCC (Hyvärinen and Morioka 2016).
    """
    similarity = cosines(first, second)
    return matched(similarity if signed else similarity.abs())


EXACT_UP_TO = 16_384
"""Directions of the larger set up to which the best match is exact: the method is cubic."""
_CHUNK = 4096


def match_many(first: Directions, second: Directions, *, signed: bool = False) -> Match:
    """Return what `match_directions` does, or a greedy match where the sets are large."""
    if max(len(first), len(second)) <= EXACT_UP_TO:
        return match_directions(first, second, signed=signed)
    return greedy_match(first, second, signed=signed)


def greedy_match(first: Directions, second: Directions, *, signed: bool = False) -> Match:
    """Return the pairs that taking the nearest pair again and again gives.

    Of what is left, pairs that are each other's nearest are taken, all at once, until nothing
    is left. Cosines are computed in chunks, so that none of all pairs are in memory.
    """
    left, right = torch.arange(len(first)), torch.arange(len(second))
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    while len(left) and len(right):
        nearest, best = _nearest(first[left], second[right], signed)
        back, _ = _nearest(second[right], first[left], signed)
        mutual = back[nearest] == torch.arange(len(left))
        if not mutual.any():  # rounding may part two that are equally near
            mutual[best.argmax()] = True
        found.append((left[mutual], right[nearest[mutual]], best[mutual]))
        kept = torch.ones(len(right), dtype=torch.bool)
        kept[nearest[mutual]] = False
        left, right = left[~mutual], right[kept]
    rows, columns, cosine = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = rows.argsort()
    return Match(rows[order], columns[order], cosine[order])


def _nearest(
    first: Directions, second: Directions, signed: bool
) -> tuple[Int[Tensor, " first"], Float[Tensor, " first"]]:
    """Return the nearest direction of the second set to each of the first, and its cosine."""
    places, best = [], []
    for part in torch.split(first, _CHUNK):
        similarity = cosines(part, second)
        top = (similarity if signed else similarity.abs()).max(dim=1)
        places.append(top.indices.cpu())
        best.append(top.values.cpu())
    return torch.cat(places), torch.cat(best)
