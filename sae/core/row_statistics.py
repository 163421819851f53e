"""Norms of rows and moments of columns in one pass over the rows, compiled by numba."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numba import njit
from numpy import ndarray


def norms_and_moments(
    rows: Float[ndarray, "row d_in"], keep: Bool[ndarray, " row"]
) -> tuple[Float[ndarray, " row"], Float[ndarray, " moment"]]:
    """Norms of float32 rows, and of the kept ones their number, mean and spread.

    Returns:
        Norms (float32), and in float64 one array of the count, d_in means and d_in sums of
        squared distances from them; zeros without a kept row.
    """
    norms = np.empty(len(rows), np.float32)
    moments = np.zeros(1 + 2 * rows.shape[1])
    kept = np.flatnonzero(keep)
    if len(kept):
        # Distances are summed from a row and not from zero, so nothing cancels.
        pivot = rows[kept[0]].astype(np.float64)
        _one_pass(rows, keep, pivot, norms, moments)
        _, mean, squares = split_moments(moments)
        squares -= mean**2 / len(kept)
        mean /= len(kept)
        mean += pivot
        moments[0] = len(kept)
    else:
        _one_pass(rows, keep, np.zeros(rows.shape[1]), norms, moments)
    return norms, moments


def merged_moments(parts: Iterable[Float[ndarray, " moment"]]) -> Float[ndarray, " moment"]:
    """Moments of all parts together, in their order (Chan, Golub and LeVeque 1979)."""
    whole = np.zeros(1)
    for part in parts:
        if whole.size == 1:
            whole = part.copy()
            continue
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
@njit(cache=True, nogil=True)
def _one_pass(rows: Any, keep: Any, pivot: Any, norms: Any, moments: Any) -> None:
    n, d = rows.shape
    for i in range(n):
        norms[i] = np.sqrt(_square(rows[i]))
        if keep[i]:
            for q in range(d):
                distance = np.float64(rows[i, q]) - pivot[q]
                moments[1 + q] += distance
                moments[1 + d + q] += distance * distance


@njit(cache=True, nogil=True)
def _square(row: Any) -> float:
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
