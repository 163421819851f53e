"""A mean over things of one kind as a finding, with its interval."""

import math

from jaxtyping import Float
from torch import Tensor

from sae.core.bootstrap import bootstrap_mean
from sae.findings import Finding


def mean_finding(
    key: str,
    values: Float[Tensor, " unit"],
    *,
    unit: str,
    n: int | None = None,
    floor: float | None = None,
    floor_of: str = "",
    of: str = "",
) -> Finding:
    """Return the mean of the values that are numbers, with its 95% bootstrap interval.

    Args:
        unit: what the values are of, in the plural.
        n: how many of them there are, where each value is already a mean of several.

    Raises:
        ValueError: if none of the values is a number; then say `why_not`.
    """
    known = values[~values.isnan()].double()
    if not len(known):
        raise ValueError(f"{key} has no value: say why_not")
    found, mean = bootstrap_mean(known), float(known.mean())
    # Resampled means of equal values differ from theirs by rounding.
    ends = (min(found.low, mean), max(found.high, mean))
    low, high = ends if all(map(math.isfinite, ends)) else (None, None)
    return Finding(
        key=key,
        value=mean,
        low=low,
        high=high,
        n=len(known) if n is None else n,
        unit=unit,
        floor=floor,
        floor_of=floor_of,
        of=of,
    )
