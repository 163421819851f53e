"""Kernels that read fast products on a GPU: which entries a bound on their error leaves open.

A block of products is read once for what is certainly reached, once to count what is open and
once to list it; bounds are computed on the way. Import this as `triton_kernels`.
"""
# Kernels are no Python: their arguments are pointers, numbers and constants.
# ruff: noqa: ANN001, ANN202, PLR0913, PLR0917

from typing import Any, NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from sae.core import Indices, PerRow
from sae.core import triton_kernels as kernels

STRETCH = 1024
"""Latents whose products are read at once; a power of two."""
SIDE = 4
"""Rows whose products are read at once; a power of two."""
GROUPS = 8
"""Groups of latents of which the best is known, for each latent that is to be chosen."""


@triton.jit
@no_type_check
def _exceeding(
    products, stride, per_row, per_latent, relative, rows, n_rows, columns, d_sae,
    SUM: tl.constexpr
):  # fmt: skip
    """Return how far a tile's entries exceed their bounds by the products, and the error."""
    within = rows < n_rows
    inside = columns < d_sae
    product = tl.load(
        products + rows.to(tl.int64)[:, None] * stride + columns[None, :],
        mask=within[:, None] & inside[None, :],
        other=0,
    ).to(SUM)
    far = tl.load(per_row + rows * 3, mask=within, other=0)
    size = tl.load(per_row + rows * 3 + 1, mask=within, other=0)
    unit = tl.load(per_row + rows * 3 + 2, mask=within, other=0)
    shift = tl.load(per_latent + columns, mask=inside, other=0)
    norm = tl.load(per_latent + 2 * d_sae + columns, mask=inside, other=0)
    rough = tl.load(per_latent + 3 * d_sae + columns, mask=inside, other=0)
    latent_unit = tl.load(per_latent + 4 * d_sae + columns, mask=inside, other=0)
    # One unit after the other: the product of two tiny ones may be zero.
    product = product * unit[:, None] * latent_unit[None, :]
    off = tl.abs(product) * relative
    off += far[:, None] * norm[None, :] + size[:, None] * rough[None, :]
    return product + shift[None, :], off


@triton.jit
@no_type_check
def _best_certain(
    products, stride, per_row, per_latent, relative, best, n_rows, d_sae,
    SIDE: tl.constexpr, STRETCH: tl.constexpr, SUM: tl.constexpr
):  # fmt: skip
    rows = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    part = tl.program_id(1)
    parts = tl.num_programs(1)
    most = tl.zeros((SIDE, STRETCH), SUM)
    for left in range(part * STRETCH, d_sae, parts * STRETCH):
        columns = left + tl.arange(0, STRETCH)
        slack = tl.load(per_latent + d_sae + columns, mask=columns < d_sae, other=0)
        value, off = _exceeding(
            products, stride, per_row, per_latent, relative, rows, n_rows, columns, d_sae, SUM
        )
        lower = value - off - slack[None, :]
        # What is no number is not larger.
        most = tl.where(lower > most, lower, most)
    group = part * STRETCH + tl.arange(0, STRETCH)
    out = best + rows.to(tl.int64)[:, None] * (parts * STRETCH) + group[None, :]
    tl.store(out, most, mask=(rows < n_rows)[:, None] & (group >= 0)[None, :])


@triton.jit
@no_type_check
def _count_open(
    products, stride, per_row, per_latent, relative, least, counts, n_rows, d_sae,
    SIDE: tl.constexpr, STRETCH: tl.constexpr, SUM: tl.constexpr
):  # fmt: skip
    rows = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    low = tl.load(least + rows, mask=rows < n_rows, other=0)
    count = tl.zeros((SIDE, STRETCH), tl.int32)
    for left in range(0, d_sae, STRETCH):
        columns = left + tl.arange(0, STRETCH)
        value, off = _exceeding(
            products, stride, per_row, per_latent, relative, rows, n_rows, columns, d_sae, SUM
        )
        # What is no number is not smaller, so it stays open.
        closed = value + off < low[:, None]
        count += tl.where((columns < d_sae)[None, :] & ~closed, 1, 0)
    tl.store(counts + rows, tl.sum(count, 1), mask=rows < n_rows)


@triton.jit
@no_type_check
def _fill_open(
    products, stride, per_row, per_latent, relative, least, row_ends, found, n_rows, d_sae,
    SIDE: tl.constexpr, STRETCH: tl.constexpr, SUM: tl.constexpr
):  # fmt: skip
    rows = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    within = rows < n_rows
    low = tl.load(least + rows, mask=within, other=0)
    at = tl.load(row_ends + rows, mask=within, other=0)
    for left in range(0, d_sae, STRETCH):
        columns = left + tl.arange(0, STRETCH)
        value, off = _exceeding(
            products, stride, per_row, per_latent, relative, rows, n_rows, columns, d_sae, SUM
        )
        closed = value + off < low[:, None]
        still = within[:, None] & (columns < d_sae)[None, :] & ~closed
        ones = tl.where(still, 1, 0)
        place = at[:, None] + tl.cumsum(ones, 1) - 1
        tl.store(found + place, tl.broadcast_to(columns[None, :], place.shape), mask=still)
        at += tl.sum(ones, 1)


class Screen(NamedTuple):
    """Products of some rows and all latents, and what they may be off by.

    With the columns f, s, u of `per_row` and the rows b, c, n, r, v of `per_latent`, a product
    p stands for `q = p u_i v_j`, and the pre-activation less its bound is at most
    `q + relative |q| + b_j + f_i n_j + s_i r_j`, and at least
    `q - relative |q| + b_j - c_j - f_i n_j - s_i r_j`.
    """

    products: Shaped[Tensor, "batch d_sae_or_more"]
    per_row: Float[Tensor, "batch 3"]
    per_latent: Float[Tensor, "5 d_sae"]
    relative: float

    def launch(self, kernel: Any, parts: int, *args: Shaped[Tensor, "..."]) -> None:
        """Run one of the kernels that read it, on `parts` parts of the latents."""
        (n_rows, stride), d_sae = self.products.shape, self.per_latent.shape[1]
        kernels.launch(
            kernel, (triton.cdiv(n_rows, SIDE), parts),
            self.products, stride, self.per_row, self.per_latent, self.relative,
            *args, n_rows, d_sae, SIDE=SIDE,
            STRETCH=kernels.width_of(d_sae, STRETCH), SUM=kernels.sum_dtype(self.per_row),
        )  # fmt: skip


def certainly_reached(screen: Screen, k: int) -> Float[Tensor, " batch"]:
    """Return for each row what `k` pre-activations less their bounds reach, zero or more.

    The best of each of many groups of latents are compared, so it is seldom much less than the
    most that the products can tell.
    """
    n_rows, d_sae = len(screen.products), screen.per_latent.shape[1]
    stretch = kernels.width_of(d_sae, STRETCH)
    parts = min(triton.cdiv(d_sae, stretch), triton.cdiv(GROUPS * k, stretch))
    best = screen.per_row.new_empty(n_rows, parts * stretch)
    screen.launch(_best_certain, parts, best)
    return best.topk(k).values[:, -1]


def count_open(screen: Screen, least: Float[Tensor, " batch"]) -> PerRow:
    """Return how many entries of each row may reach `least`; int32."""
    counts = torch.empty(len(least), dtype=torch.int32, device=least.device)
    screen.launch(_count_open, 1, least, counts)
    return counts


def fill_open(
    screen: Screen,
    least: Float[Tensor, " batch"],
    row_ends: Int[Tensor, " batch_plus_1"],
    nnz: int,
) -> Indices:
    """Return columns (int32, ascending inside a row) of the entries that may reach `least`.

    `row_ends` are the running sums of what `count_open` found, `nnz` the last of them.
    """
    columns = torch.empty(nnz, dtype=torch.int32, device=least.device)
    if nnz:
        screen.launch(_fill_open, 1, least, row_ends, columns)
    return columns
