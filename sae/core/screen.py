"""Which entries of `x @ weight.T + bias` are chosen: a fast product, a bound, exact values.

The product that finds the active latents need not be as precise as their values. It is computed
in 8-bit integers, in bfloat16 or in float32, whichever is fastest on this machine; a bound on
its error says which entries might be chosen, and only those are computed exactly. So what is
chosen, and every bit of the values, is the same with each.
"""

import time
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import llvmlite.binding
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from sae.core import Latents, PerLatent, Vectors, Weight, cpu_kernels
from sae.core.bounds import Entries, Shifts, centre_of, error_of_sums, norms_of
from sae.core.cpu_kernels import Lists, RoundingErrors
from sae.core.int8_tile import HERE, ROWS
from sae.core.jit import in_threads

# On two cores, d_in 576: 32 MB stay in the last cache until they are read, and rows fewer
# than 512 cost the product a tenth of its speed.
BLOCK_BYTES = 32 << 20
MIN_BLOCK_ROWS = 512
# Lists of rows start at different places of the cache's lines.
_PADDING = 16
# Multiplications below which there is nothing to win.
_WORTH_A_TRIAL = 1 << 28
# Multiplications of a trial, and rows that take next to nothing. On a GPU fewer take no longer
# than it takes to start them.
_TRIAL, _TRIAL_ON_GPU = 1 << 32, 1 << 36
_FEW = 24
# The first GPUs that multiply 8-bit integers, Turing.
_INT8_GPU = (7, 5)

MATMULS = ("auto", "float32", "bfloat16", "int8")
"""Products that can be asked for; `auto` is the fastest here."""


def matmuls_here(device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """Return the products that a device can compute for activations of a type."""
    if device.type == "cpu":
        narrow, int8 = dtype == torch.float32, HERE is not None
    else:
        # Rows of fewer bits are computed as float32 there.
        narrow = device.type == "cuda" and dtype != torch.float64
        int8 = (
            narrow
            and torch.version.cuda is not None
            and torch.cuda.get_device_capability(device) >= _INT8_GPU
        )
    if not narrow:
        return ("float32",)
    return ("float32", "bfloat16", "int8") if int8 else ("float32", "bfloat16")


def chosen(
    x: Vectors, weight: Weight, bias: PerLatent, bound: PerLatent, k: int, matmul: str
) -> Entries:
    """Return entries above `bound`, or the `k` largest positive ones of each row, exactly.

    Of equal ones those of lower columns are taken. Values on the CPU are those of float32
    numbers computed in float64 and rounded once (`exact`), on a GPU those of
    `triton_kernels.sampled_product`.
    """
    if matmul == "auto" or len(x) == 0:
        matmul = fastest(x.shape[1], len(weight), len(x), x.dtype, x.device)
    if x.is_cuda:
        # Triton is there only where a GPU is.
        from sae.core import gpu_screen

        rows = block_rows(len(weight), x.element_size())
        parts = gpu_screen.screened(x, weight, bias, bound, k, matmul, rows)
    else:
        # Kernels read directions from one end to the other.
        x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
        screened = _int8 if matmul == "int8" else _dense
        parts = screened(x, weight, bias, bound.to(x.dtype).contiguous(), k, matmul)
    counts, columns, values = map(torch.cat, zip(*(part[:3] for part in parts), strict=True))
    return Entries(counts, columns, values, sum(part.candidates for part in parts))


def block_rows(d_sae: int, itemsize: int) -> int:
    """Return how many rows of products are computed at once."""
    return max(MIN_BLOCK_ROWS, BLOCK_BYTES // (d_sae * itemsize))


def product_blocks(x: Vectors, weight: Weight) -> Iterator[Latents]:
    """Give `x @ weight.T`, some rows at a time, all in the same memory.

    Without the bias: torch would copy it over the whole block before the product is added,
    which takes a seventh of the product's time.
    """
    rows = min(len(x), block_rows(len(weight), x.element_size()))
    block = x.new_empty(rows, len(weight))
    for part in torch.split(x, max(1, rows)):
        yield torch.mm(part, weight.t(), out=block[: len(part)])


@cache
def fastest(d_in: int, d_sae: int, rows: int, dtype: torch.dtype, device: torch.device) -> str:
    """Return the product that takes the least time here, by a short trial on rows made up."""
    names = [name for name in matmuls_here(device, dtype) if _may_be_fast(name, device)]
    if len(names) == 1 or rows * d_in * d_sae < _WORTH_A_TRIAL:
        return "float32"
    generator = torch.Generator(device).manual_seed(0)
    here: dict[str, Any] = {"generator": generator, "device": device}
    weight = torch.randn(d_sae, d_in, **here) / d_in**0.5
    trial = _TRIAL_ON_GPU if device.type == "cuda" else _TRIAL
    n = min(rows, max(4 * _FEW, trial // (d_in * d_sae)))
    # Rows like those that dictionaries are for: a few latents, and as much of something else.
    acts = torch.rand(n, 32, **here)
    latents = torch.randint(d_sae, (n, 32), **here)
    x = embedding_bag(latents, weight, mode="sum", per_sample_weights=acts)
    x += torch.randn(x.shape, **here) * (x.square().mean() ** 0.5)
    x, weight = x.to(dtype), weight.to(dtype)
    zeros, k = weight.new_zeros(d_sae), min(32, d_sae)

    def clocked(name: str, n: int) -> float:
        _finish(device)
        began = time.perf_counter()
        chosen(x[:n], weight, zeros, zeros, k, name)
        _finish(device)
        return time.perf_counter() - began

    # What a few rows take is for the latents; the first call of each may compile.
    fixed = {name: min(clocked(name, _FEW) for _ in range(3)) for name in names}
    rounds = [{name: clocked(name, n) for name in names} for _ in range(3)]
    whole = {name: min(found[name] for found in rounds) for name in names}
    more = (rows - n) / max(1, n - _FEW)
    return min(names, key=lambda name: whole[name] + more * max(0, whole[name] - fixed[name]))


def _may_be_fast(matmul: str, device: torch.device) -> bool:
    """Whether a product is worth a trial; one without instructions may take minutes."""
    if matmul != "bfloat16" or device.type != "cpu":
        return True
    features = llvmlite.binding.get_host_cpu_features()
    return bool(features.get("avx512bf16") or features.get("amx-bf16"))


def _finish(device: torch.device) -> None:
    """Wait until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _lists(rows: int, d_sae: int, dtype: torch.dtype) -> Lists:
    return Lists(
        torch.empty(rows, d_sae + _PADDING, dtype=torch.int32),
        torch.empty(rows, d_sae + _PADDING, dtype=dtype),
        torch.empty(rows, dtype=torch.int64),
        torch.empty(rows, 2, dtype=torch.int64),
    )


def _first(lists: Lists, n: int) -> Lists:
    return Lists(*(array[:n] for array in lists))


def _entries(lists: Lists) -> Entries:
    columns, values = cpu_kernels.compact(lists)
    return Entries(lists.counts.clone(), columns, values, int(lists.work[:, 0].sum()))


def _int8(
    x: Tensor, weight: Tensor, bias: Tensor, bound: Tensor, k: int, _: str
) -> list[Entries]:
    from sae.core import int8_kernels, int8_rounding

    w, b, least = (t.numpy() for t in (weight, bias, bound))
    latents = w, b, least, k, int8_rounding.packed(w, b, least, centre_of(x).numpy())
    # Each thread gets several blocks, and they are whole tiles.
    share = -(-len(x) // (2 * torch.get_num_threads()))
    rows = min(int8_kernels.BLOCK_ROWS, -(-share // ROWS) * ROWS)
    # Fresh memory would cost more than what is written to it.
    free: list[Lists] = []

    def some(first: int, last: int) -> Entries:
        memory = free.pop() if free else _lists(rows, len(weight), x.dtype)
        lists = _first(memory, last - first)
        arrays = (array.numpy() for array in lists)
        int8_kernels.screen_rows(x[first:last].numpy(), *latents, *arrays)
        found = _entries(lists)
        free.append(memory)
        return found

    return in_threads(some, len(x), rows)


def _dense(
    x: Tensor, weight: Tensor, bias: Tensor, bound: Tensor, k: int, matmul: str
) -> list[Entries]:
    narrow = weight.bfloat16() if matmul == "bfloat16" else weight
    rows = min(len(x), block_rows(len(weight), x.element_size()))
    memory = _lists(rows, len(weight), x.dtype)
    latents = _LatentErrors.of(weight, narrow, bias, bound)
    block = x.new_empty(rows, len(weight))
    found = []
    for part in torch.split(x, rows):
        products = block[: len(part)]
        given = part.to(narrow.dtype)
        if narrow is weight:
            torch.mm(part, weight.t(), out=products)
        else:
            products.copy_(given @ narrow.t())
        lists = _first(memory, len(part))
        cpu_kernels.choose_rows(
            products, part, weight, bias, bound, k, latents.errors(part, given), lists
        )
        found.append(_entries(lists))
    return found


class _LatentErrors(NamedTuple):
    shifts: PerLatent
    slacks: PerLatent
    norms: PerLatent
    rounding: float
    """What rounding the latents' directions changes, in units of their norms, at most."""
    longest: float
    """The largest norm that is a number."""

    @classmethod
    def of(cls, weight: Tensor, narrow: Tensor, bias: Tensor, bound: Tensor) -> "_LatentErrors":
        norms = norms_of(weight)
        rounding = 0.0
        if narrow is not weight:
            rounding = _largest_number(norms_of(weight - narrow, 1e-20) / norms)
        shifts = Shifts.of(bias, bound, norms, torch.zeros_like(bias))
        return cls(*shifts, rounding, _largest_number(norms))

    def errors(self, x: Tensor, given: Tensor) -> RoundingErrors:
        """Return the errors of the products of rows `x`, which were computed as `given`."""
        sizes = norms_of(x)
        fars = error_of_sums(x, sizes, self.longest)
        relative = 0.0
        if given.dtype != x.dtype:
            off = norms_of(x - given, 1e-20)
            fars += off + (sizes + off) * self.rounding * 1.001
            # The product itself is rounded to the narrow type.
            relative = torch.finfo(given.dtype).eps
        elif torch.get_float32_matmul_precision() != "highest":
            # Torch may round both sides to bfloat16 on the way.
            fars += 2 * torch.finfo(torch.bfloat16).eps * sizes
        return RoundingErrors(
            self.shifts, self.slacks, self.norms, fars, x.new_tensor([relative])
        )


def _largest_number(numbers: Tensor) -> float:
    """Return the largest of numbers from zero on that is finite, zero if none is."""
    return float(numbers.where(numbers.isfinite(), 0).max()) if len(numbers) else 0.0
