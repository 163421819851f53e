"""Ridge regression in closed form, from sums that are streamed in float64.

An affine map y ≈ x W + b with the least Σ‖y − x W − b‖² + λ‖W‖² is, of centred rows,
W = (XᵀX + λ I)⁻¹ XᵀY and b = ȳ − x̄ W. So rows need not be kept: their number, the sums of x and
y, XᵀX, XᵀY and Σ‖y‖² say all about any λ, on these rows and on others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

STRENGTHS = tuple(10.0**power for power in range(-7, 1))
"""Ridge strengths to choose from, as multiples of the mean diagonal of the centred XᵀX."""


@dataclass(frozen=True, slots=True)
class Affine:
    """A map of rows: x W + b."""

    W: Float[Tensor, "d_in d_out"]
    b: Float[Tensor, " d_out"]

    def __call__(self, x: Float[Tensor, "*row d_in"]) -> Float[Tensor, "*row d_out"]:
        """Map rows in the precision of the map, and return them in their own."""
        found: Tensor = x.to(self.W.dtype) @ self.W + self.b
        return found.to(x.dtype)


class Sums:
    """What ridge regression has to know of rows x and y, in float64."""

    def __init__(self, d_in: int, d_out: int) -> None:
        self.n_rows = 0
        self.x = torch.zeros(d_in, dtype=torch.float64)
        self.y = torch.zeros(d_out, dtype=torch.float64)
        self.xx = torch.zeros(d_in, d_in, dtype=torch.float64)
        self.xy = torch.zeros(d_in, d_out, dtype=torch.float64)
        self.yy = 0.0

    def add(self, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"]) -> None:
        """Count rows in."""
        x, y = x.double(), y.double()
        self.n_rows += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx.addmm_(x.t(), x)
        self.xy.addmm_(x.t(), y)
        self.yy += float(y.square().sum())

    def __add__(self, other: "Sums") -> "Sums":
        """Return the sums over the rows of both."""
        found = Sums(*self.xy.shape)
        for name in ("n_rows", "x", "y", "xx", "xy", "yy"):
            setattr(found, name, getattr(self, name) + getattr(other, name))
        return found


def ridge(sums: Sums, strength: float) -> Affine:
    """Return the map with the least squared error plus penalty, in float64.

    Args:
        sums: of the rows.
        strength: λ as a multiple of the mean diagonal of the centred XᵀX.
    """
    mean_x, mean_y = sums.x / sums.n_rows, sums.y / sums.n_rows
    xx = sums.xx - sums.n_rows * torch.outer(mean_x, mean_x)
    xy = sums.xy - sums.n_rows * torch.outer(mean_x, mean_y)
    # Rows that are all alike have no spread to measure a penalty by.
    unit = float(xx.diagonal().mean()) or 1.0
    xx.diagonal().add_(strength * unit)
    weights = torch.linalg.solve(xx, xy)
    return Affine(weights, mean_y - mean_x @ weights)


def squared_error(sums: Sums, found: Affine) -> float:
    """Return Σ‖y − x W − b‖² over the rows of some sums."""
    mapped = found.W.t() @ sums.x
    crossed = sums.yy - 2 * (found.W * sums.xy).sum() - 2 * found.b @ sums.y
    squares = (found.W * (sums.xx @ found.W)).sum() + 2 * found.b @ mapped
    return float(crossed + squares + sums.n_rows * found.b @ found.b)


def chosen_ridge(
    fitted: Sums, judged: Sums, strengths: Sequence[float] = STRENGTHS
) -> tuple[float, Affine]:
    """Return the strength that errs least on other rows than it is fitted to, and its map.

    The map itself is then fitted to all of them.

    Args:
        fitted: rows that each strength is fitted to.
        judged: rows that it is judged on, none of them among the others.
        strengths: those to choose from.
    """
    errors = {one: squared_error(judged, ridge(fitted, one)) for one in strengths}
    best = min(errors, key=errors.__getitem__)
    return best, ridge(fitted + judged, best)
