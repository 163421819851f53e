"""A figure beside what chance gives in its place."""

import torch
from jaxtyping import Float
from torch import Tensor

Values = Float[Tensor, "*figure"]
Nulls = Float[Tensor, "null *figure"]


def z_score(values: Values, nulls: Nulls) -> Values:
    """Return how many standard deviations of the nulls each figure lies above their mean.

    Where all nulls are equal but for rounding there is no such number: then it is not a number.
    """
    nulls = nulls.double()
    spread = nulls.std(0)
    found: Tensor = (values.double() - nulls.mean(0)) / spread
    is_equal = spread <= 1e-6 * nulls.abs().amax(0)
    return found.masked_fill(is_equal, float("nan")).to(values)


def rank_p(values: Values, nulls: Nulls) -> Values:
    """Return (1 + nulls at least as high) / (1 + nulls): the p-value of a rank, one-sided.

    A figure drawn like the nulls has p ≤ a with a probability of at most a (Phipson and Smyth
    2010, "Permutation p-values should never be zero").
    """
    found: Tensor = (1 + (nulls >= values).sum(0)) / (1 + len(nulls))
    return found.to(values)


def random_directions(n: int, width: int, seed: int) -> Float[Tensor, "null width"]:
    """Return vectors of norm one, drawn evenly from all directions."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(n, width, generator=generator)
    found: Tensor = drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)
    return found


def correlated_directions(
    n: int, rows: Float[Tensor, "row width"], seed: int
) -> Float[Tensor, "null width"]:
    """Return vectors of norm one, drawn from normal vectors with the covariance of rows."""
    centred = rows.double() - rows.double().mean(0)
    generator = torch.Generator().manual_seed(seed)
    values, vectors = torch.linalg.eigh(centred.t() @ centred / len(rows))
    drawn = torch.randn(n, rows.shape[1], generator=generator, dtype=torch.float64)
    found = (drawn * values.clamp_min(0).sqrt()) @ vectors.t()
    directions: Tensor = torch.nn.functional.normalize(found, dim=1).float()
    return directions
