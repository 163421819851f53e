"""Statistics of rows that are streamed: norms, moments of columns, quantiles."""
# Kernels are no Python: numba finds the types of their arguments.
# ruff: noqa: ANN001, ANN202

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from numpy.typing import NDArray

from sae.core.jit import compiled

# The upper 20 bits of a float32 are its sign, eight of exponent and eleven behind them; numbers
# that are not negative are in the order of their bits.
_SHIFT = 12
_BINS = 1 << 19


def norms_and_moments(
    rows: Float[ndarray, "row d_in"], keep: Bool[ndarray, " row"]
) -> tuple[Float[ndarray, " row"], Float[ndarray, " moment"]]:
    """Norms of float32 rows (float32), and moments of the kept ones in one float64 array.

    These are the count, d_in means and d_in sums of squared distances from them.
    """
    norms = np.empty(len(rows), np.float32)
    moments = np.zeros(1 + 2 * rows.shape[1])
    kept = np.flatnonzero(keep)
    # Distances are summed from a row and not from zero, so nothing cancels.
    pivot = rows[kept[0]].astype(np.float64) if len(kept) else np.zeros(rows.shape[1])
    _one_pass(rows, keep, pivot, norms, moments)
    if len(kept):
        _, mean, squares = split_moments(moments)
        squares -= mean**2 / len(kept)
        mean /= len(kept)
        mean += pivot
        moments[0] = len(kept)
    return norms, moments


def merged_moments(parts: Iterable[Float[ndarray, " moment"]]) -> Float[ndarray, " moment"]:
    """Moments of all parts together, in their order (Chan, Golub and LeVeque 1979)."""
    rest = iter(parts)
    whole = next(rest, np.zeros(1)).copy()
    for part in rest:
        (n, mean, squares), (m, part_mean, part_squares) = map(split_moments, (whole, part))
        if m:
            delta = part_mean - mean
            squares += part_squares + delta**2 * (n * m / (n + m))
            mean += delta * (m / (n + m))
            whole[0] = n + m
    return whole


def split_moments(
    moments: Float[ndarray, " moment"],
) -> tuple[float, Float[ndarray, " d_in"], Float[ndarray, " d_in"]]:
    """Count, means and sums of squared distances; the two arrays are views."""
    mean, squares = np.split(moments[1:], 2)
    return float(moments[0]), mean, squares


# Not in parallel: harvests call it from a thread of their own, and numba's simplest pool of
# threads may be entered by one thread alone. Nor with `fastmath`, whose roundings change from
# one compilation to the next, and with them the bytes of a cache.
@compiled
def _one_pass(rows, keep, pivot, norms, moments):
    n, d = rows.shape
    for i in range(n):
        norms[i] = np.sqrt(_square(rows[i]))
        if keep[i]:
            for q in range(d):
                distance = np.float64(rows[i, q]) - pivot[q]
                moments[1 + q] += distance
                moments[1 + d + q] += distance * distance


@compiled
def _square(row):
    """`Σ row²` in float64: four sums side by side, as each waits for its last one."""
    s0 = s1 = s2 = s3 = 0.0
    whole = len(row) - len(row) % 4
    for q in range(0, whole, 4):
        s0 += np.float64(row[q]) * np.float64(row[q])
        s1 += np.float64(row[q + 1]) * np.float64(row[q + 1])
        s2 += np.float64(row[q + 2]) * np.float64(row[q + 2])
        s3 += np.float64(row[q + 3]) * np.float64(row[q + 3])
    for q in range(whole, len(row)):
        s0 += np.float64(row[q]) * np.float64(row[q])
    return (s0 + s1) + (s2 + s3)


class QuantileSketch:
    """Counts of float32 numbers by their leading bits, which are in their order.

    A quantile is right to one part in 4,096: half the width of a bin.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(_BINS, dtype=np.int64)

    def add(self, values: NDArray[np.float32]) -> None:
        """Count some more values, none of them negative."""
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32) >> _SHIFT
        self.counts += np.bincount(bits.reshape(-1), minlength=_BINS)

    @property
    def total(self) -> int:
        """How many values were added."""
        return int(self.counts.sum())

    def quantiles(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the values below which these shares of all lie, linear between neighbours."""
        ranks = shares * (self.total - 1)
        return self._at(np.floor(ranks)) + (ranks % 1) * (
            self._at(np.ceil(ranks)) - self._at(np.floor(ranks))
        )

    def above(self, bound: float) -> int:
        """How many values are above `bound`, to the width of a bin."""
        first = int(np.float32(bound).view(np.uint32)) >> _SHIFT
        return int(self.counts[first + 1 :].sum())

    def occupied(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Middle and count of every bin that is not empty, ascending, (bin,) each."""
        bins = np.flatnonzero(self.counts)
        return _middles(bins), self.counts[bins]

    def _at(self, ranks: NDArray[np.float64]) -> NDArray[np.float64]:
        return _middles(np.searchsorted(np.cumsum(self.counts), ranks, side="right"))


def _middles(bins: NDArray[np.intp]) -> NDArray[np.float64]:
    edges = (np.stack([bins, bins + 1]) << _SHIFT).astype(np.uint32).view(np.float32)
    middles: NDArray[np.float64] = edges.astype(np.float64).mean(0)
    return middles
