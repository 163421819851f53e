"""Loops over pre-activations that no library has, compiled by numba for the CPU.

A plain `torch.topk` or `nonzero` reads and writes the whole (batch, d_sae) matrix several
times; these read it once or twice while it is in the processor's cache, and write the active
entries alone. Products of sparse with dense matrices are left to torch and MKL, which are as
fast.
"""

from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit, prange
from torch import Tensor


def _threads() -> None:
    """Let numba use as many threads as torch does."""
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))


def count_above(
    pre_acts: Float[Tensor, "batch d_sae"], bound: Float[Tensor, " d_sae"]
) -> Int[Tensor, " batch"]:
    """How many entries of each row exceed their column's bound, int64."""
    _threads()
    counts = torch.empty(len(pre_acts), dtype=torch.int64)
    _count_above(pre_acts.numpy(), bound.numpy(), counts.numpy())
    return counts


def fill_above(
    pre_acts: Float[Tensor, "batch d_sae"],
    bound: Float[Tensor, " d_sae"],
    counts: Int[Tensor, " batch"],
) -> tuple[Int[Tensor, " nnz"], Float[Tensor, " nnz"]]:
    """Columns (int32, ascending in a row) and values of the entries that were counted."""
    _threads()
    ends = counts.cumsum(0)
    nnz = int(ends[-1]) if len(ends) else 0
    columns = torch.empty(nnz, dtype=torch.int32)
    values = pre_acts.new_empty(nnz)
    starts = ends - counts
    _fill_above(
        pre_acts.numpy(), bound.numpy(), starts.numpy(), columns.numpy(), values.numpy()
    )
    return columns, values


def top_k_rows(
    pre_acts: Float[Tensor, "batch d_sae"], k: int
) -> tuple[Int[Tensor, " batch"], Int[Tensor, " nnz"], Float[Tensor, " nnz"]]:
    """The k largest positive entries of each row, fewer where fewer are positive.

    Of equal entries those of lower columns are taken. Returns the number of entries of each
    row (int64), their columns (int32, ascending in a row) and values.
    """
    _threads()
    n = len(pre_acts)
    counts = torch.empty(n, dtype=torch.int64)
    columns = torch.empty(n, k, dtype=torch.int32)
    values = pre_acts.new_empty(n, k)
    arrays = pre_acts.numpy(), counts.numpy(), columns.numpy(), values.numpy()
    # A few rows tell where the k-th largest lies; only entries above a careful guess are
    # sorted then. A row that has too few of them is read again without the guess.
    head = min(n, 32)
    _top_k_rows(*(a[:head] for a in arrays), pre_acts.new_zeros(()).item())
    guess = float(values[:head, :].amin(1).quantile(0.1)) if _full(counts[:head], k) else 0.0
    _top_k_rows(*(a[head:] for a in arrays), guess)
    if _full(counts, k):
        return counts, columns.flatten(), values.flatten()
    held = torch.arange(k) < counts[:, None]
    return counts, columns[held], values[held]


def _full(counts: Tensor, k: int) -> bool:
    return bool((counts == k).all())


def nested_errors_(
    partials: Float[Tensor, "batch levels d_out"],
    target: Float[Tensor, "batch d_out"],
    weights: Float[Tensor, " levels"],
) -> tuple[Float[Tensor, " levels"], Float[Tensor, "batch d_out"]]:
    """Squared errors of prefix sums, and, in place of the partial sums, their gradients.

    With `e_g = Σ_{h≤g} partials_h − target`: returns `Σ_rows ‖e_g‖²` for each level (float64)
    and the last level's error; `partials_g` becomes `2 Σ_{h≥g} weights_h e_h`.
    """
    _threads()
    n, levels, _ = partials.shape
    squares = torch.zeros(n, levels, dtype=torch.float64)
    error = torch.empty_like(target)
    _nested_errors(
        partials.numpy(), target.numpy(), weights.numpy(), squares.numpy(), error.numpy()
    )
    return squares.sum(0), error


def adam_unit_rows_(  # noqa: PLR0913
    weight: Float[Tensor, "d_sae d_out"],
    grad: Float[Tensor, "d_sae d_out"],
    exp_avg: Float[Tensor, "d_sae d_out"],
    exp_avg_sq: Float[Tensor, "d_sae d_out"],
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
    _threads()
    beta1, beta2 = betas
    size, root = lr / (1 - beta1**step), (1 - beta2**step) ** 0.5
    numbers = np.array([beta1, beta2, size, root, eps], weight.numpy().dtype)
    _adam_unit_rows(weight.numpy(), grad.numpy(), exp_avg.numpy(), exp_avg_sq.numpy(), numbers)


_CHUNK = 32

_compiled = njit(parallel=True, cache=True, nogil=True)
_compiled_fast = njit(parallel=True, cache=True, nogil=True, fastmath=True)


@_compiled
def _count_above(pre_acts: Any, bound: Any, counts: Any) -> None:
    n, m = pre_acts.shape
    for i in prange(n):
        count = 0
        for j in range(m):
            count += pre_acts[i, j] > bound[j]
        counts[i] = count


@_compiled
def _fill_above(pre_acts: Any, bound: Any, starts: Any, columns: Any, values: Any) -> None:
    n, m = pre_acts.shape
    for i in prange(n):
        at = starts[i]
        for j in range(m):
            value = pre_acts[i, j]
            if value > bound[j]:
                columns[at] = j
                values[at] = value
                at += 1


@njit(cache=True, nogil=True)
def _candidates(row: Any, guess: float, found: Any, columns: Any) -> int:
    """Entries above `guess`; most chunks have none, which the processor sees in one go."""
    guess = row.dtype.type(guess)
    n = 0
    whole = len(row) - len(row) % _CHUNK
    for start in range(0, whole, _CHUNK):
        hit = False
        for j in range(start, start + _CHUNK):
            hit |= row[j] > guess
        if hit:
            for j in range(start, start + _CHUNK):
                if row[j] > guess:
                    found[n] = row[j]
                    columns[n] = j
                    n += 1
    for j in range(whole, len(row)):
        if row[j] > guess:
            found[n] = row[j]
            columns[n] = j
            n += 1
    return n


@njit(cache=True, nogil=True)
def _kth_largest(values: Any, k: int) -> float:
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
    kth: float = values[at]
    return kth


@_compiled
def _top_k_rows(pre_acts: Any, counts: Any, columns: Any, values: Any, guess: float) -> None:
    n, m = pre_acts.shape
    k = columns.shape[1]
    for i in prange(n):
        found = np.empty(m, pre_acts.dtype)
        where = np.empty(m, np.int32)
        n_found = _candidates(pre_acts[i], guess, found, where)
        if n_found < k and guess > 0:
            n_found = _candidates(pre_acts[i], 0.0, found, where)
        least = np.zeros(1, pre_acts.dtype)[0]
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


@_compiled_fast
def _nested_errors(partials: Any, target: Any, weights: Any, squares: Any, error: Any) -> None:
    n, levels, d = partials.shape
    for i in prange(n):
        for q in range(d):
            error[i, q] = -target[i, q]
        for g in range(levels):
            total = 0.0
            for q in range(d):
                e = error[i, q] + partials[i, g, q]
                error[i, q] = e
                partials[i, g, q] = 2 * weights[g] * e
                total += e * e
            squares[i, g] = total
        for g in range(levels - 2, -1, -1):
            for q in range(d):
                partials[i, g, q] += partials[i, g + 1, q]


@_compiled_fast
def _adam_unit_rows(weight: Any, grad: Any, mean: Any, square: Any, numbers: Any) -> None:
    beta1, beta2, size, root, eps = numbers
    one = numbers.dtype.type(1)
    n, d = weight.shape
    for i in prange(n):
        along = numbers.dtype.type(0)
        for q in range(d):
            along += weight[i, q] * grad[i, q]
        norm = numbers.dtype.type(0)
        for q in range(d):
            g = grad[i, q] - along * weight[i, q]
            m = beta1 * mean[i, q] + (one - beta1) * g
            v = beta2 * square[i, q] + (one - beta2) * g * g
            mean[i, q] = m
            square[i, q] = v
            w = weight[i, q] - size * m / (np.sqrt(v) / root + eps)
            weight[i, q] = w
            norm += w * w
        norm = one / np.sqrt(norm)
        for q in range(d):
            weight[i, q] *= norm
