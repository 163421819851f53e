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
