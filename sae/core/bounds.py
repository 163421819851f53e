"""What the choice of entries is made of on every device: bounds on errors, and its result."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae.core import Indices, PerLatent, PerRow, Values, Vectors

Sizes = Float[Tensor, " batch"]


class Entries(NamedTuple):
    """What was chosen of some rows, in row order."""

    counts: PerRow
    columns: Indices
    values: Values
    candidates: int = 0
    """Entries that the product left open."""


class Shifts(NamedTuple):
    """What is added to products, so that they tell how far an entry exceeds its bound."""

    shifts: PerLatent
    """Bias less bound, and a little more."""
    slacks: PerLatent
    """How much more that is at most, and once more as much."""
    norms: PerLatent
    """Norms of the latents' directions; infinite where nothing can be ruled out."""

    @classmethod
    def of(
        cls, bias: PerLatent, bound: PerLatent, norms: PerLatent, moved: PerLatent
    ) -> "Shifts":
        """Return them for products that are smaller by `moved`, which may be in float64."""
        eps = torch.finfo(bias.dtype).eps
        slacks = 8 * eps * (bias.abs() + bound.abs() + moved.abs()) + 1e-32
        shifts = (moved + bias - bound + slacks).to(bias.dtype)
        # Nothing exceeds an infinite bound; otherwise what is not a number rules nothing out.
        shifts = shifts.masked_fill(bound == torch.inf, -torch.inf)
        known = shifts < torch.inf
        return cls(
            shifts.where(known, 0),
            2 * slacks.to(bias.dtype),
            norms.where(known & norms.isfinite(), torch.inf),
        )


def norms_of(rows: Vectors, lost: float = 1e-17) -> Sizes:
    """Return upper bounds of norms, with what is `lost` as squares of tiny numbers vanish."""
    norms: Sizes = torch.linalg.vector_norm(rows, dim=1) * 1.001 + lost
    return norms


def error_of_sums(x: Vectors, sizes: Sizes, longest: Float[Tensor, ""] | float) -> Sizes:
    """Return what sums are off by, in units of a direction's norm, for rows of given sizes.

    Sums of d products in any order (Higham 2002, 3.1), and twice that, for the exact values'
    own rounding. Sums that may leave the range of float32 on the way rule nothing out.
    """
    fars = 2 * (x.shape[1] + 8) * torch.finfo(x.dtype).eps * sizes
    return fars.where(sizes * longest < 1e30, torch.inf)


def centre_of(x: Vectors) -> Float[Tensor, " d"]:
    """Return a vector that rows are close to; any is right, and a close one rounds less."""
    # Not the median, which torch has no deterministic kernel for on a GPU.
    some = x[:: max(1, len(x) // 64)].sort(0).values
    centre = some[(len(some) - 1) // 2]
    return torch.where(centre.isfinite(), centre, 0)
