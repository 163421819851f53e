"""How sure a mean is, by the bootstrap: over prompts, and over features and prompts at once."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

_N_RESAMPLES = 2000
_COLUMNS = 1024
"""Figures whose resampled means are held at once."""
_FEW = 6
"""Of fewer values no resampling reaches as far as it has to."""


class Interval(NamedTuple):
    """A mean with the ends of its 95% interval; not a number where there is none."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """Return mean and ends, None for what is not a number."""
        named = self._asdict().items()
        return {key: value if math.isfinite(value) else None for key, value in named}


def bootstrap_mean(
    values: Float[Tensor, " unit"] | Float[Tensor, "unit part"], seed: int = 0
) -> Interval:
    """Return the mean of a table of values, and its 95% bootstrap interval.

    Rows (features, say) are drawn with replacement, and so are columns, the same for all rows:
    all features are tried on the same prompts (Owen 2007, "The pigeonhole bootstrap", which
    errs on the side of width). Percentiles of few values are too narrow, so they are taken as
    far out as makes the interval as wide as Student's where values are normal (Hesterberg
    2015, "What teachers should know about the bootstrap"), for the shorter side of the table;
    where that has fewer than six, no end lies inside Student's interval of the rows' means.
    Rows with a value that is no number are left out. Of a single row the columns alone are
    drawn; of a single value or none there are no ends.
    """
    table = values.double().cpu()
    table = table[:, None] if table.dim() == 1 else table
    table = table[~table.isnan().any(1)]
    if len(table) == 1:
        table = table.t()
    rows, columns = table.shape
    mean = float(table.mean())
    if rows < 2:
        return Interval(mean, math.nan, math.nan)
    generator = torch.Generator().manual_seed(seed)
    weights = [_resampled(n, generator) for n in (rows, columns)]
    means = torch.einsum("bi,ij,bj->b", weights[0], table, weights[1])
    n = min(rows, columns) if columns > 1 else rows
    share = _tail(n)
    low, high = torch.quantile(means, torch.tensor([share, 1 - share]).double()).tolist()
    if n < _FEW:
        half = float(_student_half(table.mean(1)))
        low, high = min(low, mean - half), max(high, mean + half)
    return Interval(mean, low, high)


def bootstrap_means(
    values: Float[Tensor, "unit figure"], seed: int = 0
) -> tuple[Float[Tensor, " figure"], Float[Tensor, " figure"], Float[Tensor, " figure"]]:
    """Return the mean of each column of a table, and both ends of its 95% interval.

    Each is what `bootstrap_mean` gives of the column alone, with the same resamples for all.
    Of a single row the ends are not numbers.
    """
    table = values.double().cpu()
    n, mean = len(table), table.mean(0)
    if n < 2:
        ends = torch.full_like(mean, math.nan)
        return mean, ends, ends
    weights = _resampled(n, torch.Generator().manual_seed(seed))
    share = torch.tensor([_tail(n), 1 - _tail(n)]).double()
    parts = [
        torch.quantile(weights @ some, share, dim=0) for some in torch.split(table, _COLUMNS, 1)
    ]
    low, high = torch.cat(parts, 1)
    if n < _FEW:
        half = _student_half(table)
        low, high = torch.minimum(low, mean - half), torch.maximum(high, mean + half)
    return mean, low, high


def bootstrap_ratio(
    numerators: Float[Tensor, " unit"], denominators: Float[Tensor, " unit"], seed: int = 0
) -> Interval:
    """Return the ratio of two sums over units, and its 95% bootstrap interval.

    Units (sequences, say) are drawn with replacement, each with both of its parts, and the ends
    are taken as far out as `bootstrap_mean` takes them. With fewer than two units, or where
    denominators may add up to nothing, there are no ends.
    """
    above, below = numerators.double().cpu(), denominators.double().cpu()
    n, ratio = len(above), float(above.sum() / below.sum())
    if n < 2:
        return Interval(ratio, math.nan, math.nan)
    weights = _resampled(n, torch.Generator().manual_seed(seed))
    ratios = (weights @ above) / (weights @ below)
    if not bool(ratios.isfinite().all()):
        return Interval(ratio, math.nan, math.nan)
    share = torch.tensor([_tail(n), 1 - _tail(n)]).double()
    low, high = torch.quantile(ratios, share).tolist()
    return Interval(ratio, low, high)


def _resampled(n: int, generator: torch.Generator) -> Float[Tensor, "resample n"]:
    """Return how much of each draw with replacement falls on each of `n`."""
    drawn: Int[Tensor, "resample n"] = torch.randint(n, (_N_RESAMPLES, n), generator=generator)
    counts = torch.zeros(_N_RESAMPLES, n, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts)) / n


def _tail(n: int) -> float:
    """Return the share of resampled means to leave out at either end."""
    from scipy.stats import norm, t

    return float(norm.cdf(t.ppf(0.025, n - 1) * math.sqrt(n / (n - 1))))


def _student_half(values: Tensor) -> Tensor:
    """Return half the width of Student's 95% interval of means."""
    from scipy.stats import t

    n = len(values)
    half: Tensor = float(t.ppf(0.975, n - 1)) / math.sqrt(n) * values.std(0)
    return half
