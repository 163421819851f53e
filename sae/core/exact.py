"""Pre-activations of single entries, as exact as they can be, and the choice among them.

The value of an entry is `⟨x_i, w_j⟩ + b_j`, of float32 numbers computed in float64 and rounded
once. A product of two float32 numbers is exact in float64, and the order of the sum is fixed,
so the value is the same on every processor, whatever found the entry.
"""
# Kernels are no Python: numba finds the types of their arguments.
# ruff: noqa: ANN001, ANN201

import numpy as np

from sae.core.jit import compiled
from sae.core.vectors import dot, prefetch

# The largest place in a list that is kept in order by shifting what comes behind.
_MANY = 64
# Entries between asking for a direction and needing it.
_AHEAD = 2


@compiled
def kth_largest(values, k):
    """Return the k-th largest of `values` by quickselect, which reorders them."""
    low, high, at = 0, len(values) - 1, k - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if at <= j:
            high = j
        elif at >= i:
            low = i
        else:
            break
    return values[at]


@compiled
def kth_of_many(values, k):
    """Return the k-th largest of `values`, which is found the faster the smaller k is."""
    if k > _MANY:
        return kth_largest(values.copy(), k)
    found = np.full(k, -np.inf, values.dtype)
    for value in values:
        if value > found[k - 1]:
            at = k - 1
            while at > 0 and found[at - 1] < value:
                found[at] = found[at - 1]
                at -= 1
            found[at] = value
    return found[k - 1]


@compiled
def fill_exact(x, x64, weight, bias, columns, values, n):
    """Write the exact pre-activations of n entries of a row; no number is minus infinity.

    Each latent's direction is asked for a little before it is needed. `x64` is memory.
    """
    for q in range(len(x)):
        x64[q] = x[q]
    first, size = weight.ctypes.data, weight.strides[0]
    for c in range(min(_AHEAD, n)):
        prefetch(first + columns[c] * size, size)
    for c in range(n):
        if c + _AHEAD < n:
            prefetch(first + columns[c + _AHEAD] * size, size)
        j = columns[c]
        value = weight.dtype.type(dot(x64, weight[j]) + bias[j])
        values[c] = value if value == value else -np.inf  # noqa: PLR0124


@compiled
def keep_top_k(columns, values, n, k):
    """Move the `k` largest positive of the first `n` entries to the front, and count them.

    Of equal ones those at the front are taken. Entries keep their order.
    """
    least = values.dtype.type(0)
    equal = 0
    if n > k:
        least = kth_largest(values[:n].copy(), k)
        equal = k
        for c in range(n):
            equal -= values[c] > least
    kept = 0
    for c in range(n):
        value = values[c]
        ties = equal > 0 and value == least
        if value > 0 and (value > least or ties):
            equal -= ties
            columns[kept] = columns[c]
            values[kept] = value
            kept += 1
    return kept


@compiled
def keep_above(columns, values, n, bound):
    """Move those of the first `n` entries that exceed their bound to the front, and count."""
    kept = 0
    for c in range(n):
        if values[c] > bound[columns[c]]:
            columns[kept] = columns[c]
            values[kept] = values[c]
            kept += 1
    return kept


@compiled
def drop_below(least, columns, values, n):
    """Leave out those of the first `n` entries that are below `least`, and count the rest."""
    kept = 0
    for c in range(n):
        if not values[c] < least:
            columns[kept] = columns[c]
            values[kept] = values[c]
            kept += 1
    return kept
