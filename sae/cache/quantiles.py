"""Quantiles of a stream of positive numbers, in memory that does not grow with it."""

import numpy as np
from numpy.typing import NDArray

# The upper 20 bits of a float32 are its sign, eight of exponent and eleven behind them; numbers
# that are not negative are in the order of their bits.
_SHIFT = 12
_BINS = 1 << 19


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
        """The values below which these shares of all lie, linear between neighbours."""
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
        """The middle of the bin in which each rank lies."""
        return _middles(np.searchsorted(np.cumsum(self.counts), ranks, side="right"))


def _middles(bins: NDArray[np.intp]) -> NDArray[np.float64]:
    edges = (np.stack([bins, bins + 1]) << _SHIFT).astype(np.uint32).view(np.float32)
    middles: NDArray[np.float64] = edges.astype(np.float64).mean(0)
    return middles
