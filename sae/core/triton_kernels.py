"""The sparse products of a step, and what surrounds them, as Triton kernels for a GPU.

Every sum runs in float32 (in float64 if an input is float64) and in a fixed order, without
atomics, so the same inputs give the same bits. Indices are int32, offsets 64 bits wide. Import
this once tensors are known to be on a GPU, or in a process with `TRITON_INTERPRET=1`.
"""
# Kernels are no Python: their arguments are pointers, numbers and constants.
# ruff: noqa: ANN001, ANN202, PLR0913, PLR0917

import math
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Int, Shaped
from torch import Tensor

from sae.core import Indices, Values, Vectors, Weight

WIDEST = 128
"""Columns of a matrix that one program handles at once, at most; a power of two."""
ENTRIES = 16
"""Entries that one program reads at once, a row of a matrix for each; a power of two."""
PIECE = 512
"""Entries of one latent that are summed by one program, at most twice as many."""
PROGRAMS = 4096
"""Rows are split until there are about as many programs as this, to fill a GPU."""


@triton.jit
@no_type_check  # Triton compiles the source: nothing is to check or wrap the function.
def _rows_of(matrix, index, within, width, across):
    """Return a tile: the columns `across` of the rows `index`, zero where there are none."""
    return tl.load(
        matrix + index.to(tl.int64)[:, None] * width + across[None, :],
        mask=within[:, None] & (across < width)[None, :],
        other=0,
    )


@triton.jit
@no_type_check
def _add_entries(
    total, start, end, indices, values, dense, width, across, ENTRIES: tl.constexpr
):
    """Add `values[k] * dense[indices[k]]` for k in [start, end), each to one row of `total`."""
    for at in range(start, end, ENTRIES):
        entries = at + tl.arange(0, ENTRIES)
        within = entries < end
        index = tl.load(indices + entries, mask=within, other=0)
        value = tl.load(values + entries, mask=within, other=0).to(total.dtype)
        tile = _rows_of(dense, index, within, width, across)
        total += value[:, None] * tile.to(total.dtype)
    return total


@triton.jit
@no_type_check
def _sum_pieces(
    ends, n_rows, indices, values, dense, pieces, width,
    WIDTH: tl.constexpr, ENTRIES: tl.constexpr, PIECE: tl.constexpr, SUM: tl.constexpr
):  # fmt: skip
    piece = tl.program_id(0)
    # The row that owns the piece's first entry is the last to start at or before it.
    low = 0
    high = n_rows
    while high - low > 1:
        middle = (low + high) // 2
        before = tl.load(ends + middle) <= piece * PIECE
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    if tl.load(ends + low + 1) >= (piece + 1) * PIECE:
        across = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        total = tl.zeros((ENTRIES, WIDTH), SUM)
        total = _add_entries(
            total, piece * PIECE, (piece + 1) * PIECE,
            indices, values, dense, width, across, ENTRIES,
        )  # fmt: skip
        out = pieces + piece.to(tl.int64) * width + across
        tl.store(out, tl.sum(total, 0), mask=across < width)


@triton.jit
@no_type_check
def _sum_rows(
    ends, indices, values, dense, pieces, out, width,
    WIDTH: tl.constexpr, ENTRIES: tl.constexpr, PIECE: tl.constexpr, SUM: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    across = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    start = tl.load(ends + row)
    end = tl.load(ends + row + 1)
    total = tl.zeros((ENTRIES, WIDTH), SUM)
    if PIECE == 0:
        total = _add_entries(total, start, end, indices, values, dense, width, across, ENTRIES)
    else:
        first = tl.cdiv(start, PIECE)
        last = end // PIECE
        head = tl.where(first < last, first * PIECE, end)
        tail = tl.where(first < last, last * PIECE, end)
        total = _add_entries(total, start, head, indices, values, dense, width, across, ENTRIES)
        total = _add_entries(total, tail, end, indices, values, dense, width, across, ENTRIES)
        for at in range(first, last, ENTRIES):
            piece = at + tl.arange(0, ENTRIES)
            total += _rows_of(pieces, piece, piece < last, width, across)
    result = tl.sum(total, 0).to(out.dtype.element_ty)
    tl.store(out + row * width + across, result, mask=across < width)


@triton.jit
@no_type_check
def _sample_products(
    row_ends, columns, a, weight, out, width,
    WIDTH: tl.constexpr, ENTRIES: tl.constexpr, SUM: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    end = tl.load(row_ends + row + 1)
    start = tl.load(row_ends + row) + tl.program_id(1) * ENTRIES
    for at in range(start, end, tl.num_programs(1) * ENTRIES):
        entries = at + tl.arange(0, ENTRIES)
        within = entries < end
        column = tl.load(columns + entries, mask=within, other=0)
        total = tl.zeros((ENTRIES, WIDTH), SUM)
        for left in range(0, width, WIDTH):
            across = left + tl.arange(0, WIDTH)
            x = tl.load(a + row * width + across, mask=across < width, other=0).to(SUM)
            tile = _rows_of(weight, column, within, width, across)
            total += x[None, :] * tile.to(SUM)
        result = tl.sum(total, 1).to(out.dtype.element_ty)
        tl.store(out + entries, result, mask=within)


@triton.jit
@no_type_check
def _adam_unit_row(
    weight, grad, exp_avg, exp_avg_sq, width,
    step_size: tl.float64, root_correction: tl.float64,
    rest1: tl.float64, beta2: tl.float64, rest2: tl.float64, eps: tl.float64,
    WIDTH: tl.constexpr, SUM: tl.constexpr
):  # fmt: skip
    across = tl.arange(0, WIDTH)
    inside = across < width
    at = tl.program_id(0).to(tl.int64) * width + across
    w = tl.load(weight + at, mask=inside, other=0).to(SUM)
    g = tl.load(grad + at, mask=inside, other=0).to(SUM)
    m = tl.load(exp_avg + at, mask=inside, other=0).to(SUM)
    v = tl.load(exp_avg_sq + at, mask=inside, other=0).to(SUM)
    g -= w * tl.sum(w * g, 0)
    m += (g - m) * tl.full((1,), rest1, SUM)
    v = v * tl.full((1,), beta2, SUM) + g * g * tl.full((1,), rest2, SUM)
    scale = tl.sqrt(v) / tl.full((1,), root_correction, SUM) + tl.full((1,), eps, SUM)
    w = tl.where(inside, w - tl.full((1,), step_size, SUM) * (m / scale), 0.0)
    w = w / tl.maximum(tl.sqrt(tl.sum(w * w, 0)), 1e-12)
    tl.store(weight + at, w.to(weight.dtype.element_ty), mask=inside)
    tl.store(exp_avg + at, m.to(exp_avg.dtype.element_ty), mask=inside)
    tl.store(exp_avg_sq + at, v.to(exp_avg_sq.dtype.element_ty), mask=inside)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Run `kernel` where its first tensor is, on contiguous ones; an empty grid is nothing."""
    if 0 not in grid:
        args = tuple(a.contiguous() if isinstance(a, Tensor) else a for a in args)
        with torch.cuda.device_of(args[0]):  # type: ignore[no-untyped-call]
            # Fused multiply-adds are asked for, since Triton's default changes in 3.10.
            kernel[grid](*args, **constants, enable_fp_fusion=True)


def sum_dtype(*tensors: Shaped[Tensor, "..."]) -> Any:
    """Return the type in which Triton adds up numbers of some tensors."""
    return tl.float64 if torch.float64 in {t.dtype for t in tensors} else tl.float32


def width_of(d: int, most: int = 2**20) -> int:
    """Return how many of `d` numbers are handled at once: a power of two, `most` at most."""
    return max(16, min(int(triton.next_power_of_2(d)), most))


def _products(
    ends: Tensor, indices: Tensor, values: Tensor, dense: Tensor, piece: int
) -> Tensor:
    n_rows, d = len(ends) - 1, dense.shape[1]
    n_pieces = len(indices) // piece if piece else 0
    width = width_of(d, WIDEST)
    across = triton.cdiv(d, width)
    total = sum_dtype(values, dense)
    constants = {"WIDTH": width, "ENTRIES": ENTRIES, "PIECE": piece, "SUM": total}
    dtype = torch.float64 if total == tl.float64 else torch.float32
    pieces = dense.new_empty((n_pieces, d), dtype=dtype)
    out = dense.new_empty((n_rows, d), dtype=torch.result_type(values, dense))
    launch(
        _sum_pieces, (n_pieces, across),
        ends, n_rows, indices, values, dense, pieces, d, **constants,
    )  # fmt: skip
    launch(
        _sum_rows, (n_rows, across),
        ends, indices, values, dense, pieces, out, d, **constants,
    )  # fmt: skip
    return out


def decode(
    row_ends: Int[Tensor, " batch_plus_1"], columns: Indices, values: Values, weight: Weight
) -> Vectors:
    """Return the CSR matrix of `values`, (batch, d_sae), times `weight`."""
    return _products(row_ends, columns, values, weight, piece=0)


def transposed_product(
    column_ends: Int[Tensor, " d_sae_plus_1"],
    rows_by_column: Indices,
    values_by_column: Values,
    dense: Vectors,
) -> Weight:
    """Return the transposed CSR matrix times `dense`; the entries come in the order of latents.

    A latent that fires in every row must not hold up the rest. So a first launch sums every
    piece of `PIECE` entries that lies within one latent, and a latent's own program adds those
    sums and the entries left at its two ends: no program reads more than about two pieces.
    """
    piece = PIECE if len(dense) >= PIECE else 0
    return _products(column_ends, rows_by_column, values_by_column, dense, piece)


def sampled_product(
    row_ends: Int[Tensor, " batch_plus_1"], columns: Indices, a: Vectors, weight: Weight
) -> Values:
    """Return `(a @ weight.T)[i, j]` at each entry (i, j) of a CSR matrix."""
    batch, d = a.shape
    out = a.new_empty(len(columns), dtype=torch.result_type(a, weight))
    splits = max(1, min(16, PROGRAMS // max(batch, 1))) if len(columns) else 0
    launch(
        _sample_products, (batch, splits),
        row_ends, columns, a, weight, out, d,
        WIDTH=width_of(d, WIDEST), ENTRIES=ENTRIES, SUM=sum_dtype(a, weight),
    )  # fmt: skip
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
    """One step of Adam (number `step`, from 1) on rows of unit norm, which stay so.

    As `cpu_kernels.adam_unit_rows_` does it, with `torch.optim.Adam`'s update.
    """
    beta1, beta2 = betas
    given = [weight.detach(), exp_avg, exp_avg_sq]
    ready = [tensor.contiguous() for tensor in given]
    n_rows, d = weight.shape
    width = width_of(d)
    launch(
        _adam_unit_row, (n_rows,), ready[0], grad, ready[1], ready[2], d,
        lr / (1 - beta1**step), math.sqrt(1 - beta2**step), 1 - beta1, beta2, 1 - beta2, eps,
        WIDTH=width, SUM=sum_dtype(weight), num_warps=max(1, min(16, width // 256)),
    )  # fmt: skip
    for tensor, written in zip(given, ready, strict=True):
        if not tensor.is_contiguous():
            tensor.copy_(written)
    torch.autograd.graph.increment_version(weight)
