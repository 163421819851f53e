"""Loops over pre-activations that no library has, compiled by numba for the CPU.

A plain `torch.topk` or `nonzero` goes through the whole (batch, d_sae) matrix several times;
these do once or twice, while it is in the processor's cache.
"""
# Kernels are no Python: numba finds the types of their arguments.
# ruff: noqa: ANN001, ANN202, PLR0913, PLR0917

from typing import NamedTuple

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from numba import prange
from torch import Tensor

from sae.core import Indices, Latents, PerLatent, PerRow, Values, Vectors, Weight
from sae.core.exact import (
    drop_below,
    fill_exact,
    keep_above,
    keep_top_k,
    kth_largest,
    kth_of_many,
)
from sae.core.jit import compiled, parallel
from sae.core.vectors import dot, exceeding, lowest_bit, prefetch


class RoundingErrors(NamedTuple):
    """How far products may be from what they stand for.

    The pre-activation less its bound is at most `p + relative |p| + shift_j + far_i norm_j`
    for a product `p` of row i and latent j, and at least
    `p - relative |p| + shift_j - slack_j - far_i norm_j`.
    """

    shifts: PerLatent
    """Bias less bound, and a little more."""
    slacks: PerLatent
    """How much more that is at most, and once more as much."""
    norms: PerLatent
    """Norms of the latents' directions."""
    fars: Float[Tensor, " batch"]
    """Error of a product with a direction of norm one."""
    relative: Float[Tensor, " 1"]
    """Error in units of the product."""


class Lists(NamedTuple):
    """Entries chosen of each row, at the front of the row; memory behind is not touched."""

    columns: Int[Tensor, "batch d_sae"]
    values: Latents
    counts: PerRow
    work: Int[Tensor, "batch 2"]
    """How many entries of a row the product left open, and of how many values were computed."""


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


def choose_rows(
    products: Latents,
    x: Vectors,
    weight: Weight,
    bias: PerLatent,
    bound: PerLatent,
    k: int,
    errors: RoundingErrors,
    lists: Lists,
) -> None:
    """Choose entries of the pre-activations `x @ weight.T + bias` of which `products` tell.

    Above their `bound`, or of `k` the k largest positive ones of each row, those of lower
    columns among equals. Fills `lists`.
    """
    use_threads()
    given = [array.detach().numpy() for array in (products, x, weight, bias, bound)]
    rows, latents = [array.numpy() for array in lists], [array.numpy() for array in errors]
    _choose_all(*given, k, *latents, *rows)


def compact(lists: Lists) -> tuple[Indices, Values]:
    """Return columns and values of all rows of `lists`, one after the other."""
    ends = lists.counts.cumsum(0)
    nnz = int(ends[-1]) if len(ends) else 0
    columns, values = lists.columns.new_empty(nnz), lists.values.new_empty(nnz)
    arrays = (lists.columns, lists.values, ends - lists.counts, lists.counts, columns, values)
    _compact(*(array.numpy() for array in arrays))
    return columns, values


def nested_errors(
    row_ends: Int[Tensor, " batch_levels_plus_1"],
    columns: Indices,
    values: Values,
    weight: Weight,
    target: Vectors,
    level_weights: Float[Tensor, "batch levels"],
    gradients: Float[Tensor, "batch levels d_out"],
    detached: bool = False,
) -> tuple[Float[Tensor, "batch levels"], Vectors, Values]:
    """Decode sparse rows level by level, compare with the target, and differentiate.

    With `e_g = Σ_{h≤g} (what level h decodes to) − target` and w for `level_weights`: returns
    `‖e_g‖²` of each row and level (float64), the last level's error, and the derivative of the
    loss `Σ_g w_g ‖e_g‖²` by each value, and fills `gradients` with that by what each level
    decodes to, `2 Σ_{h≥g} w_h e_h`. If `detached`, only the last level's error reaches the
    levels before it, and they are `2 w_g e_g + 2 w_last e_last`, and `2 w_last e_last`.
    """
    use_threads()
    squares = torch.empty(gradients.shape[:2], dtype=torch.float64)
    error, by_value = torch.empty_like(target), torch.empty_like(values)
    entries = (t.detach().numpy() for t in (row_ends, columns, values, weight, target))
    found = (gradients, squares, error, by_value)
    weights, outputs = level_weights.numpy(), (array.numpy() for array in found)
    _nested_errors(*entries, weights, *outputs, detached)
    return squares, error, by_value


def transposed_product(
    column_ends: Int[Tensor, " d_sae_plus_1"],
    rows_by_column: Indices,
    values_by_column: Values,
    dense: Vectors,
) -> Weight:
    """Return the transposed CSR matrix times `dense`; the entries come in the order of latents.

    The sums of a latent are one thread's, in the order of rows. Threads get about as many
    entries each: the first latents of nested dictionaries are active far more often.
    """
    threads = use_threads()
    out = dense.new_empty(len(column_ends) - 1, dense.shape[1])
    shares = torch.linspace(0, len(rows_by_column), threads + 1)
    parts = torch.searchsorted(column_ends, shares.to(column_ends.dtype))
    parts[0], parts[-1] = 0, len(out)
    arrays = (parts, column_ends, rows_by_column, values_by_column, dense.contiguous(), out)
    _transposed_product(*(array.detach().numpy() for array in arrays))
    return out


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


# Entries from which the k-th largest of a row is guessed, and neighbours among them.
_SAMPLE, _RUN = 512, 16
# Rows that one thread takes at once.
_ROWS_AT_ONCE = 64


@compiled
def _open(row, shifts, norms, far, relative, guess, upper, columns, values):
    """List the entries whose upper bound exceeds `guess`; returns how many.

    `upper` is memory for 64 numbers.
    """
    n = 0
    whole = len(row) - len(row) % 64
    for start in range(0, len(row), 64):
        # Of slices that start at zero numba knows enough to handle several numbers at once.
        z, s, m = row[start:], shifts[start:], norms[start:]
        if start < whole:
            for q in range(64):
                upper[q] = z[q] + abs(z[q]) * relative + s[q] + far * m[q]
        else:
            for q in range(len(z)):
                upper[q] = z[q] + abs(z[q]) * relative + s[q] + far * m[q]
            upper[len(z) :] = -np.inf
        bits = exceeding(upper.ctypes.data, guess)
        while bits:
            q = lowest_bit(bits)
            bits &= bits - np.uint64(1)
            columns[n] = start + q
            values[n] = upper[q]
            n += 1
    return n


@compiled
def _careful_guess(row, shifts, k, sample):
    """Return a value that most likely more than `k` and less than some hundred entries exceed.

    Rows differ a lot, so each is sampled, sixteen neighbours at a time. Of the `k` largest
    about `k len(sample) / len(row)` are in the sample, seldom more than three standard
    deviations more; then the row is read again. `sample` is memory.
    """
    zero = row.dtype.type(0)
    if len(row) < 2 * len(sample):
        return zero
    runs = len(sample) // _RUN
    for run in range(runs):
        first = run * (len(row) - _RUN) // (runs - 1)
        z, s, out = row[first:], shifts[first:], sample[run * _RUN :]
        for q in range(_RUN):
            out[q] = z[q] + s[q]
    expected = k * len(sample) / len(row)
    place = int(expected + 3 * np.sqrt(expected)) + 2
    return max(zero, kth_of_many(sample, place)) if place < len(sample) else zero


@compiled
def _certain(row, shifts, slacks, norms, far, relative, k, columns, n):
    """Return what the k-th largest of n listed entries reaches for certain, at least zero."""
    low = np.zeros(max(n, k), row.dtype)
    for c in range(n):
        j = columns[c]
        off = abs(row[j]) * relative + far * norms[j]
        lower = row[j] + shifts[j] - slacks[j] - off
        low[c] = lower if lower > 0 else 0
    return kth_largest(low, k)


@compiled
def _choose_rows(
    first, last, products, x, weight, bias, bound, k,
    shifts, slacks, norms, fars, relative, columns, values, counts, work,
):  # fmt: skip
    x64 = np.empty(x.shape[1], np.float64)
    off = relative[0]
    upper, sample = np.empty(64, products.dtype), np.empty(_SAMPLE, products.dtype)
    for i in range(first, last):
        row, far = products[i], fars[i]
        guess = _careful_guess(row, shifts, k, sample) if k else row.dtype.type(0)
        n = _open(row, shifts, norms, far, off, guess, upper, columns[i], values[i])
        work[i, 0] = n
        if k:
            least = _certain(row, shifts, slacks, norms, far, off, k, columns[i], n)
            if guess > 0 and not least > guess:
                # Too high a guess may have hidden something.
                guess = np.nextafter(least, row.dtype.type(-1))
                n = _open(row, shifts, norms, far, off, guess, upper, columns[i], values[i])
                least = _certain(row, shifts, slacks, norms, far, off, k, columns[i], n)
            n = drop_below(least, columns[i], values[i], n)
        work[i, 1] = n
        fill_exact(x[i], x64, weight, bias, columns[i], values[i], n)
        if k:
            counts[i] = keep_top_k(columns[i], values[i], n, k)
        else:
            counts[i] = keep_above(columns[i], values[i], n, bound)


@parallel
def _choose_all(
    products, x, weight, bias, bound, k,
    shifts, slacks, norms, fars, relative, columns, values, counts, work,
):  # fmt: skip
    for part in prange(-(-len(products) // _ROWS_AT_ONCE)):
        first = part * _ROWS_AT_ONCE
        _choose_rows(
            first, min(first + _ROWS_AT_ONCE, len(products)),
            products, x, weight, bias, bound, k,
            shifts, slacks, norms, fars, relative, columns, values, counts, work,
        )  # fmt: skip


@compiled
def _compact(columns, values, starts, counts, out_columns, out_values):
    for i in range(len(counts)):
        for c in range(counts[i]):
            out_columns[starts[i] + c] = columns[i, c]
            out_values[starts[i] + c] = values[i, c]


@compiled
def _add_rows(at, end, rows, values, dense, total):
    """Add the rows of `dense` that the entries from `at` to `end` weigh."""
    first, size = dense.ctypes.data, dense.strides[0]
    # Four at once: what is summed is written a quarter as often.
    while at + 4 <= end:
        for i in range(at + 4, min(at + 8, end)):
            prefetch(first + rows[i] * size, size)
        v0, v1, v2, v3 = values[at], values[at + 1], values[at + 2], values[at + 3]
        r0, r1 = dense[rows[at]], dense[rows[at + 1]]
        r2, r3 = dense[rows[at + 2]], dense[rows[at + 3]]
        for q in range(len(total)):
            total[q] += (v0 * r0[q] + v1 * r1[q]) + (v2 * r2[q] + v3 * r3[q])
        at += 4
    while at < end:
        value, row = values[at], dense[rows[at]]
        for q in range(len(total)):
            total[q] += value * row[q]
        at += 1


@parallel
def _nested_errors(
    row_ends, columns, values, weight, target, level_weights,
    gradients, squares, error, by_value, detached,
):  # fmt: skip
    n, levels, d = gradients.shape
    for i in prange(n):
        off, wanted = error[i], target[i]
        for q in range(d):
            off[q] = -wanted[q]
        for g in range(levels):
            row = i * levels + g
            _add_rows(row_ends[row], row_ends[row + 1], columns, values, weight, off)
            slope, slopes = 2 * level_weights[i, g], gradients[i, g]
            for q in range(d):
                slopes[q] = slope * off[q]
            squares[i, g] = dot(off, off)
        for g in range(levels - 1, -1, -1):
            slopes = gradients[i, g]
            if g + 1 < levels:
                above = gradients[i, levels - 1 if detached else g + 1]
                for q in range(d):
                    slopes[q] += above[q]
            # The directions were just read, and are still in the processor's cache.
            row = i * levels + g
            for at in range(row_ends[row], row_ends[row + 1]):
                by_value[at] = dot(slopes, weight[columns[at]])


@parallel
def _transposed_product(parts, ends, rows, values, dense, out):
    for part in prange(len(parts) - 1):
        for j in range(parts[part], parts[part + 1]):
            out[j] = 0
            _add_rows(ends[j], ends[j + 1], rows, values, dense, out[j])


@parallel
def _adam_unit_rows(weight, grad, mean, square, numbers):
    beta1, beta2, size, root, eps = numbers
    one = numbers.dtype.type(1)
    n, d = weight.shape
    for i in prange(n):
        along = dot(weight[i], grad[i])
        for q in range(d):
            g = grad[i, q] - along * weight[i, q]
            m = beta1 * mean[i, q] + (one - beta1) * g
            v = beta2 * square[i, q] + (one - beta2) * g * g
            mean[i, q] = m
            square[i, q] = v
            weight[i, q] -= size * m / (np.sqrt(v) / root + eps)
        norm = one / np.sqrt(dot(weight[i], weight[i]))
        for q in range(d):
            weight[i, q] *= norm
