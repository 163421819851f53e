"""Which features fire together: rows of the d_sae × d_sae matrix, some at a time, by numba.

Gustavson's way with sparse products: for each entry of a feature the row of its token is
read, and added into one dense row of counts and one of products, which stay in the
processor's cache. Only pairs that fire together are ever touched.
"""

from typing import Any

import numpy as np
from numba import njit, prange

# Never with `fastmath`, see cpu_kernels.
_compiled = njit(parallel=True, cache=True, nogil=True)
_inner = njit(cache=True, nogil=True)


@_compiled
def coactivate(  # noqa: PLR0913, PLR0917
    ends: Any, tokens: Any, values: Any, first_token: int, row_ends: Any, columns: Any,
    row_values: Any, counts: Any, products: Any,
) -> None:  # fmt: skip
    """Add what some tokens say of some features: `counts` and `products` (feature, d_sae).

    Args:
        ends: with `tokens` and `values` the entries of the features.
        first_token: whose row is the first of `row_ends`; entries at tokens without a row
            are left out.
        row_ends: with `columns` and `row_values` the entries of each token, all features.
            Columns are uint32: numba asks of every signed index whether it counts from the end.
    """
    end_token = first_token + len(row_ends) - 1
    for f in prange(len(ends) - 1):
        start, end = ends[f], ends[f + 1]
        start += np.searchsorted(tokens[start:end], first_token)
        together, sums = counts[f], products[f]
        for e in range(start, end):
            if tokens[e] >= end_token:
                break
            value = np.float64(values[e])
            row = tokens[e] - first_token
            others = columns[row_ends[row] : row_ends[row + 1]]
            heights = row_values[row_ends[row] : row_ends[row + 1]]
            for i in range(len(others)):
                together[others[i]] += 1
                sums[others[i]] += value * heights[i]


# As in panel_kernels: numba keeps compiled code by the file of the caller, and would not see a
# change there.
@_inner
def _insert(keys: Any, names: Any, key: float, name: int) -> None:
    at = len(keys) - 1
    while at > 0 and key > keys[at - 1]:
        keys[at], names[at] = keys[at - 1], names[at - 1]
        at -= 1
    keys[at], names[at] = key, name


@_compiled
def strongest_pairs(  # noqa: PLR0913, PLR0917
    first_feature: int, n_rows: int, fired: Any, sums: Any, squares: Any, counts: Any,
    products: Any, correlated: Any, correlations: Any, coactive: Any, overlaps: Any,
) -> None:  # fmt: skip
    """The partners of each feature of a block with the highest Pearson r, and Jaccard.

    Pearson over all `n_rows` rows, those where neither fires included; only r > 0, and only
    pairs that fire together. Ties fall to the lower feature.

    Args:
        fired: (d_sae,), with `sums` and `squares` of each feature's activations.
        correlated: (feature, n), filled with −1; `correlations` with 0.
        coactive: (feature, n), filled with −1; `overlaps` with 0.
    """
    spreads = np.sqrt(np.maximum(0.0, squares - sums * sums / n_rows))
    n = correlated.shape[1]
    for f in prange(len(counts)):
        own = first_feature + f
        for other in range(len(fired)):
            together = counts[f, other]
            if together == 0 or other == own:
                continue
            overlap = together / (fired[own] + fired[other] - together)
            if overlap > overlaps[f, n - 1]:
                _insert(overlaps[f], coactive[f], overlap, other)
            covariance = products[f, other] - sums[own] * sums[other] / n_rows
            spread = spreads[own] * spreads[other]
            if covariance > correlations[f, n - 1] * spread and spread > 0:
                r = covariance / spread
                if r > correlations[f, n - 1]:
                    _insert(correlations[f], correlated[f], r, other)
