"""Choosing entries on a GPU: a fast product, what its error leaves open, and exact values.

Rows and latents are given to the product as what they are, as bfloat16 or as 8-bit integers, in
units of their own. With `x = x₁ + e`, `w = w₁ + f`, where `x₁` and `w₁` are what the product is
given, `|x·w − x₁·w₁| ≤ ‖e‖ ‖w‖ + (‖x‖ + ‖e‖) ‖f‖` (Cauchy and Schwarz). What is rounded is rows
less a vector that is close to many of them, whose product with the latents is added again. And
before they become integers an orthogonal matrix spreads what is large over 64 coordinates:
inner products stay what they are, and rounding costs less.

Numbers of 8 bits with an exponent (fp8) have no place here: they keep 4 bits of most numbers,
of which integers keep 7, and how precisely a GPU sums their products is not documented.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import pad

from sae.core import PerLatent, PerRow, Values, Vectors, Weight, triton_kernels
from sae.core.bounds import Entries, Shifts, centre_of, error_of_sums, norms_of
from sae.core.triton_screen import Screen, certainly_reached, count_open, fill_open

TURNED = 64
"""Coordinates that a Hadamard matrix mixes; widths are filled up to a multiple."""
CHUNK = 1 << 24
"""Numbers that are rounded at once."""
ROWS = 32
"""Rows come in multiples; a GPU's products of integers want more than 16."""

_LARGEST = 127
# A GPU's products of integers want a multiple of latents.
_LATENTS = 8
# TF32 keeps 10 bits behind the point and may cut the others off.
_TF32 = 2.0**-10


class Side(NamedTuple):
    """Rows or latents as a product is given them."""

    given: Shaped[Tensor, "n_or_more width"]
    units: Float[Tensor, " n"]
    """What one of the numbers given stands for."""
    norms: Float[Tensor, " n"]
    """Upper bounds of the norms of what they stand for."""
    offs: Float[Tensor, " n"]
    """Upper bounds of the norms of what they leave out."""


class Product(NamedTuple):
    """A product of rows and latents, ready to be computed, and what it may be off by."""

    rows: Shaped[Tensor, "batch_or_more width"]
    latents: Shaped[Tensor, "d_sae_or_more width"]
    per_row: Float[Tensor, "batch 3"]
    per_latent: Float[Tensor, "5 d_sae"]
    relative: float

    @classmethod
    def of(
        cls, x: Vectors, weight: Weight, bias: PerLatent, bound: PerLatent, matmul: str
    ) -> "Product":
        """Return the product of a name."""
        relative, moved = 0.0, torch.zeros_like(bias)
        near = x
        if matmul != "float32":
            centre = centre_of(x)
            near, moved = x - centre, _moved(weight, centre)
        if matmul == "int8":
            a, b = _integers(near, ROWS), _integers(weight, _LATENTS)
        elif matmul == "bfloat16":
            a, b = _narrow(near), _narrow(weight)
            # Rounding to the nearest is off by half the distance of neighbours.
            relative = 0.51 * torch.finfo(torch.bfloat16).eps
        else:
            a, b = _whole(x), _whole(weight)
        longest = b.norms.where(b.norms.isfinite(), 0).amax()
        # Either of a row and the same less the centre may be the longer one.
        sizes = torch.maximum(norms_of(x), a.norms)
        fars = a.offs + error_of_sums(x, sizes, longest)
        return cls(
            a.given,
            b.given,
            torch.stack([fars, a.norms + a.offs, a.units], 1),
            torch.stack([*Shifts.of(bias, bound, b.norms, moved), b.offs, b.units]),
            relative,
        )

    def blocks(self, rows: int) -> Iterator[tuple[int, Screen]]:
        """Give the start of about `rows` rows and their products, all in the same memory."""
        rows = _filled_up(rows, ROWS)
        integers = self.rows.dtype == torch.int8
        multiply = torch._int_mm if integers else torch.mm
        memory = self.rows.new_empty(
            min(rows, len(self.rows)),
            len(self.latents),
            dtype=torch.int32 if integers else self.rows.dtype,
        )
        for start in range(0, len(self.per_row), rows):
            given = self.rows[start : start + rows]
            per_row = self.per_row[start : start + rows]
            with _sums_in_float32():
                multiply(given, self.latents.t(), out=memory[: len(given)])
            products = memory[: len(per_row)]
            yield start, Screen(products, per_row, self.per_latent, self.relative)


def screened(
    x: Vectors,
    weight: Weight,
    bias: PerLatent,
    bound: PerLatent,
    k: int,
    matmul: str,
    rows: int,
) -> list[Entries]:
    """Return what `screen.chosen` does, of `rows` rows at a time.

    Numbers of fewer bits than float32 are taken as float32, and only the values are rounded.
    """
    dtype, wide = x.dtype, torch.promote_types(x.dtype, torch.float32)
    x, weight, bias, bound = (t.to(wide) for t in (x, weight, bias, bound))
    if not len(x) or not len(weight):
        nothing = x.new_empty(0)
        return [Entries(nothing.new_zeros(len(x)).long(), nothing.int(), nothing.to(dtype))]
    product = Product.of(x, weight, bias, bound, matmul)
    found = []
    for start, screen in product.blocks(rows):
        part = x[start : start + len(screen.products)]
        entries = _entries(screen, part, weight, bias, bound, k)
        found.append(entries._replace(values=entries.values.to(dtype)))
    return found


def _entries(
    screen: Screen, x: Tensor, weight: Tensor, bias: Tensor, bound: Tensor, k: int
) -> Entries:
    """Return what is chosen of the rows `x`, of whose products the screen tells."""
    least = certainly_reached(screen, k) if k else torch.zeros_like(x[:, 0])
    counts = count_open(screen, least)
    ends = pad(counts.cumsum(0), (1, 0)).int()
    # The one time that the processor waits for the GPU here, but for the sizes of the results.
    nnz, most = torch.stack([ends[-1], counts.amax()]).tolist()
    columns = fill_open(screen, least, ends, nnz)
    values = triton_kernels.sampled_product(ends, columns, x, weight) + bias[columns]
    values = values.where(~values.isnan(), -torch.inf)
    keep = _largest(values, counts, nnz, most, k) if k else values > bound[columns]
    before = pad(keep.cumsum(0), (1, 0))[ends]
    return Entries(before.diff(), columns[keep], values[keep], nnz)


def _largest(values: Values, counts: PerRow, nnz: int, most: int, k: int) -> Tensor:
    """Return whether each is among the `k` largest positive ones of its row, or was the first.

    Of equal ones the first are taken. A row has `counts` values, `most` at most.
    """
    rows = torch.arange(len(counts), device=values.device)
    rows = rows.repeat_interleave(counts, output_size=nnz)
    places = torch.arange(nnz, device=values.device) - (counts.cumsum(0) - counts)[rows]
    filled = values.new_full((len(counts), max(1, most)), -torch.inf)
    filled[rows, places] = values
    least = filled.topk(min(k, filled.shape[1])).values[:, -1:].clamp_min(0)
    above = filled > least
    equal = (filled == least) & (least > 0)
    room = k - above.sum(1, keepdim=True)
    keep: Tensor = (above | (equal & (equal.cumsum(1) <= room)))[rows, places]
    return keep


def _whole(rows: Tensor) -> Side:
    norms = norms_of(rows)
    return Side(rows, torch.ones_like(norms), norms, norms * _cut_off(rows))


def _narrow(rows: Tensor) -> Side:
    given = rows.bfloat16()
    norms = norms_of(rows)
    return Side(given, torch.ones_like(norms), norms, norms_of(rows - given))


def _integers(rows: Tensor, multiple: int) -> Side:
    """Return rows, turned, as integers; zeros follow them up to a multiple."""
    n, d = rows.shape
    width = _filled_up(d, TURNED)
    given = rows.new_zeros(_filled_up(n, multiple), width, dtype=torch.int8)
    found = []
    for start in range(0, n, _chunk(width)):
        part = rows[start : start + _chunk(width)]
        integers, *numbers = _rounded(part, width)
        given[start : start + len(part)] = integers
        found.append(numbers)
    units, norms, offs = map(torch.cat, zip(*found, strict=True))
    return Side(given, units, norms, offs)


def _moved(weight: Tensor, centre: Tensor) -> Tensor:
    """Return what products are smaller by, in float64, because rows are less the centre."""
    size = _chunk(weight.shape[1])
    starts = range(0, len(weight), size)
    return torch.cat([weight[at : at + size].double() @ centre.double() for at in starts])


def _filled_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _chunk(width: int) -> int:
    return max(1, CHUNK // width)


def _rounded(rows: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return turned rows as integers, their units, and bounds as those of a `Side`."""
    signs, hadamard = _rotation(width, rows.dtype, rows.device)
    signed = pad(rows * signs[: rows.shape[1]], (0, width - rows.shape[1]))
    turned = torch.mm(signed.view(-1, TURNED), hadamard).view(signed.shape)
    units = turned.abs().amax(1) / _LARGEST
    # What is not finite, or very small or large, is left out as a whole.
    usual = (units > 1e-30) & (units < 1e30)
    integers = (turned / units[:, None]).round().where(usual[:, None], 0)
    # A turned coordinate is a sum of 64 products, each an eighth of what it is of. In norms the
    # sums' errors are eight times as large at most.
    slack = (8 * TURNED + 8) * torch.finfo(rows.dtype).eps + 1.01 * _cut_off(rows)
    norms = norms_of(turned) * (1 + 2 * slack)
    offs = norms_of(turned - integers * units[:, None]) + slack * norms
    return integers.to(torch.int8), units, norms, offs


@cache
def _rotation(width: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return signs and an orthogonal Hadamard matrix; any signs do."""
    generator = torch.Generator().manual_seed(0)
    signs = 2 * torch.randint(2, (width,), generator=generator) - 1
    hadamard = torch.ones(1, 1)
    while len(hadamard) < TURNED:
        hadamard = torch.cat(
            [torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)]
        )
    return signs.to(device, dtype), (hadamard / TURNED**0.5).to(device, dtype)


def _cut_off(rows: Tensor) -> float:
    """Return what a product of torch may leave out of its inputs, in units of their norms."""
    matmul = torch.backends.cuda.matmul
    # Since it has the newer setting, torch does not always tell the older one.
    setting = getattr(matmul, "fp32_precision", None)
    allowed = matmul.allow_tf32 if setting is None else setting == "tf32"
    return _TF32 if allowed and rows.dtype == torch.float32 else 0.0


@contextmanager
def _sums_in_float32() -> Iterator[None]:
    """Keep a GPU from adding up parts of a bfloat16 product in bfloat16, which has no bound."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_bf16_reduced_precision_reduction
    split = getattr(matmul, "allow_bf16_reduced_precision_reduction_split_k", None)
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        matmul.allow_bf16_reduced_precision_reduction = (
            before if split is None else (before, split)
        )
