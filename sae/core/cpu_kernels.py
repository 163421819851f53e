"""Loops over pre-activations that no library has, compiled by numba for the CPU.

A plain `torch.topk` or `nonzero` goes through the whole (batch, d_sae) matrix several times;
these do once or twice, while it is in the processor's cache.
"""
# Kernels are no Python: numba finds the types of their arguments.
# ruff: noqa: ANN001, ANN202, PLR0913, PLR0917

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit, prange
from torch import Tensor

from sae.core import Indices, Latents, PerLatent, PerRow, Values, Vectors, Weight


def use_threads() -> int:
    """Let numba use as many threads as torch does; returns how many.

    Numba starts its threads at the first call, and tells OpenMP how many they are, which torch
    shares. So torch is told again what it was told before.
    """
    asked = torch.get_num_threads()
    n: int = min(asked, numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(n)
    if torch.get_num_threads() != asked:
        torch.set_num_threads(asked)
    return n


def count_above(products: Latents, bias: PerLatent, bound: PerLatent) -> PerRow:
    """How many entries of each row of `products + bias` exceed their column's bound, int64."""
    use_threads()
    counts = torch.empty(len(products), dtype=torch.int64)
    _count_above(products.numpy(), bias.numpy(), bound.numpy(), counts.numpy())
    return counts


def fill_above(
    products: Latents, bias: PerLatent, bound: PerLatent, counts: PerRow
) -> tuple[Indices, Values]:
    """Columns (int32, ascending in a row) and values of the entries that were counted."""
    use_threads()
    ends = counts.cumsum(0)
    nnz = int(ends[-1]) if len(ends) else 0
    columns = torch.empty(nnz, dtype=torch.int32)
    values = products.new_empty(nnz)
    arrays = (products, bias, bound, ends - counts, columns, values)
    _fill_above(*(array.numpy() for array in arrays))
    return columns, values


def top_k_rows(products: Latents, bias: PerLatent, k: int) -> tuple[PerRow, Indices, Values]:
    """The k largest positive entries of each row of `products + bias`, or all that are.

    Of equal entries those of lower columns are taken. Returns the number of entries of each
    row (int64), their columns (int32, ascending in a row) and values.
    """
    use_threads()
    n = len(products)
    counts = torch.empty(n, dtype=torch.int64)
    columns = torch.empty(n, k, dtype=torch.int32)
    values = products.new_empty(n, k)
    _top_k_rows(*(array.numpy() for array in (products, bias, counts, columns, values)))
    if bool((counts == k).all()):
        return counts, columns.flatten(), values.flatten()
    held = torch.arange(k) < counts[:, None]
    return counts, columns[held], values[held]


def nested_errors(
    row_ends: Int[Tensor, " batch_levels_plus_1"],
    columns: Indices,
    values: Values,
    weight: Weight,
    target: Vectors,
    level_weights: Float[Tensor, " levels"],
    gradients: Float[Tensor, "batch levels d_out"],
) -> tuple[Float[Tensor, " levels"], Vectors]:
    """Decode sparse rows level by level, compare with the target, and differentiate.

    With `e_g = Σ_{h≤g} (what level h decodes to) − target`: returns `Σ_rows ‖e_g‖²` of each
    level (float64) and the last level's error, and fills `gradients` with the derivative of
    `Σ_g level_weights_g ‖e_g‖²` by what each level decodes to, `2 Σ_{h≥g} level_weights_h e_h`.
    """
    use_threads()
    squares = torch.empty(gradients.shape[:2], dtype=torch.float64)
    error = torch.empty_like(target)
    entries = (t.detach().numpy() for t in (row_ends, columns, values, weight, target))
    _nested_errors(
        *entries, level_weights.numpy(), gradients.numpy(), squares.numpy(), error.numpy()
    )
    return squares.sum(0), error


def adam_unit_rows_(
    weight: Weight,
    grad: Weight,
    exp_avg: Weight,
    exp_avg_sq: Weight,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Adam on rows that have and keep norm one, in one pass over each row.

    The gradient's component along the row is left out before the moments see it (it would
    only change the norm), and the row is normalised after the update.
    """
    use_threads()
    beta1, beta2 = betas
    size, root = lr / (1 - beta1**step), (1 - beta2**step) ** 0.5
    numbers = np.array([beta1, beta2, size, root, eps], weight.numpy().dtype)
    _adam_unit_rows(weight.numpy(), grad.numpy(), exp_avg.numpy(), exp_avg_sq.numpy(), numbers)


_CHUNK = 32
_SAMPLE = 256

# Never with `fastmath`: code that was just compiled and the same code from numba's cache then
# round differently (docs/log.md), and a resumed training ends in other bits.
_compiled = njit(parallel=True, cache=True, nogil=True)


@njit(cache=True, nogil=True)
def _dot(a, b):
    """`Σ a b` in the type of `a`: four sums side by side, as each waits for its last one."""
    s0 = s1 = s2 = s3 = a.dtype.type(0)
    whole = len(a) - len(a) % 4
    for q in range(0, whole, 4):
        s0 += a[q] * b[q]
        s1 += a[q + 1] * b[q + 1]
        s2 += a[q + 2] * b[q + 2]
        s3 += a[q + 3] * b[q + 3]
    for q in range(whole, len(a)):
        s0 += a[q] * b[q]
    return (s0 + s1) + (s2 + s3)


@_compiled
def _count_above(products, bias, bound, counts):
    n, m = products.shape
    for i in prange(n):
        count = 0
        for j in range(m):
            count += products[i, j] + bias[j] > bound[j]
        counts[i] = count


@_compiled
def _fill_above(products, bias, bound, starts, columns, values):
    n, m = products.shape
    for i in prange(n):
        at = starts[i]
        for j in range(m):
            value = products[i, j] + bias[j]
            if value > bound[j]:
                columns[at] = j
                values[at] = value
                at += 1


@njit(cache=True, nogil=True)
def _candidates(row, bias, guess, found, columns):
    """Entries above `guess`; most chunks have none, which the processor sees in one go."""
    guess = row.dtype.type(guess)
    n = 0
    whole = len(row) - len(row) % _CHUNK
    for start in range(0, whole, _CHUNK):
        hit = False
        for j in range(start, start + _CHUNK):
            hit |= row[j] + bias[j] > guess
        if hit:
            for j in range(start, start + _CHUNK):
                if row[j] + bias[j] > guess:
                    found[n] = row[j] + bias[j]
                    columns[n] = j
                    n += 1
    for j in range(whole, len(row)):
        if row[j] + bias[j] > guess:
            found[n] = row[j] + bias[j]
            columns[n] = j
            n += 1
    return n


@njit(cache=True, nogil=True)
def _kth_largest(values, k):
    """Quickselect; reorders `values`."""
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


@njit(cache=True, nogil=True)
def _careful_guess(row, bias, k):
    """A value that most likely more than `k` and less than some hundred entries exceed.

    Rows differ a lot, so each is sampled. Of the `k` largest about `k / stride` are in the
    sample, seldom more than three standard deviations more; then the row is read again.
    """
    stride = max(1, len(row) // _SAMPLE)
    sample = row[::stride] + bias[::stride]
    expected = k * len(sample) / len(row)
    place = int(expected + 3 * np.sqrt(expected)) + 2
    return max(0.0, _kth_largest(sample, place)) if place < len(sample) else 0.0


@_compiled
def _top_k_rows(products, bias, counts, columns, values):
    n, m = products.shape
    k = columns.shape[1]
    for i in prange(n):
        found = np.empty(m, products.dtype)
        where = np.empty(m, np.int32)
        guess = _careful_guess(products[i], bias, k)
        n_found = _candidates(products[i], bias, guess, found, where)
        if n_found < k and guess > 0:
            n_found = _candidates(products[i], bias, 0.0, found, where)
        least = np.zeros(1, products.dtype)[0]
        equal = 0
        if n_found > k:
            least = _kth_largest(found[:n_found].copy(), k)
            equal = k
            for c in range(n_found):
                equal -= found[c] > least
        at = 0
        for c in range(n_found):
            value = found[c]
            if value > least or (equal > 0 and value == least):
                equal -= value == least
                columns[i, at] = where[c]
                values[i, at] = value
                at += 1
        counts[i] = at


@_compiled
def _nested_errors(
    row_ends, columns, values, weight, target, level_weights, gradients, squares, error
):
    n, levels, d = gradients.shape
    for i in prange(n):
        for q in range(d):
            error[i, q] = -target[i, q]
        for g in range(levels):
            row = i * levels + g
            for at in range(row_ends[row], row_ends[row + 1]):
                value, direction = values[at], weight[columns[at]]
                for q in range(d):
                    error[i, q] += value * direction[q]
            slope = 2 * level_weights[g]
            for q in range(d):
                gradients[i, g, q] = slope * error[i, q]
            squares[i, g] = _dot(error[i], error[i])
        for g in range(levels - 2, -1, -1):
            for q in range(d):
                gradients[i, g, q] += gradients[i, g + 1, q]


@_compiled
def _adam_unit_rows(weight, grad, mean, square, numbers):
    beta1, beta2, size, root, eps = numbers
    one = numbers.dtype.type(1)
    n, d = weight.shape
    for i in prange(n):
        along = _dot(weight[i], grad[i])
        for q in range(d):
            g = grad[i, q] - along * weight[i, q]
            m = beta1 * mean[i, q] + (one - beta1) * g
            v = beta2 * square[i, q] + (one - beta2) * g * g
            mean[i, q] = m
            square[i, q] = v
            weight[i, q] -= size * m / (np.sqrt(v) / root + eps)
        norm = one / np.sqrt(_dot(weight[i], weight[i]))
        for q in range(d):
            weight[i, q] *= norm
