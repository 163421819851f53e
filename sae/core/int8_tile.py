"""The innermost loop of a product of 8-bit integers, in the instructions of this processor.

No library gives such a product piece by piece, so that a caller could look at each piece while
it is in the processor's cache; and without VNNI instructions libraries are slower than float32.
LLVM, which numba brings, compiles this loop, a `Layout` for each set of instructions.
"""

# The code of a kernel is written by functions that are no Python to a type checker.
# ruff: noqa: ANN001, ANN002, ANN201, ANN202, PLR0913, PLR0917

from dataclasses import dataclass
from typing import Any, no_type_check

import llvmlite.binding
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sae.core.vectors import sum_of_lanes

ROWS = 6
"""Rows of one tile."""
CHUNK = 32
"""Coordinates whose products are summed before a sum of 16 bits is widened."""
GROUP = 4
"""Coordinates of a row that one instruction multiplies and adds up, side by side in memory."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the weights lie for one set of instructions."""

    lanes: int
    """32-bit numbers of one register."""
    vectors: int
    """Registers of latents in one tile."""
    narrow: bool
    """Whether products are first summed in 16 bits, over `CHUNK` coordinates."""

    @property
    def width(self) -> int:
        """Latents of one tile."""
        return self.lanes * self.vectors


LAYOUTS = {
    "avx512vnni": Layout(16, 4, narrow=False),
    "avxvnni": Layout(8, 2, narrow=False),
    "avx2": Layout(8, 2, narrow=True),
}
"""By the name of the instructions, the fastest first."""


def layout_here() -> Layout | None:
    """Return the layout for this processor, None if no loop was written for it."""
    if numba.config.CPU_NAME or numba.config.CPU_FEATURES:
        # Code for another processor was asked for, and nothing tells what that one can do.
        return None
    features = llvmlite.binding.get_host_cpu_features()
    found = (layout for name, layout in LAYOUTS.items() if features.get(name))
    return next(found, None)


HERE = layout_here()

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))


@no_type_check
class _Code:
    """Instructions on vectors, appended where the builder stands."""

    def __init__(self, builder: ir.IRBuilder, layout: Layout) -> None:
        self.builder, self.layout = builder, layout
        self.int32 = ir.VectorType(_I32, layout.lanes)
        self.int16 = ir.VectorType(_I16, 2 * layout.lanes)
        self.int8 = ir.VectorType(_I8, GROUP * layout.lanes)
        self.float32 = ir.VectorType(ir.FloatType(), layout.lanes)

    def at(self, address, by, step=1):
        """Return the address `by · step` bytes further."""
        if isinstance(by, int):
            by = ir.Constant(_I64, by)
        return self.builder.add(address, self.builder.mul(by, ir.Constant(_I64, step)))

    def load(self, address, kind):
        return self.builder.load(self.builder.inttoptr(address, kind.as_pointer()), align=1)

    def store(self, value, address):
        pointer = self.builder.inttoptr(address, value.type.as_pointer())
        self.builder.store(value, pointer, align=1)

    def broadcast(self, value):
        kind = ir.VectorType(value.type, self.layout.lanes)
        undefined = ir.Constant(kind, ir.Undefined)
        one = self.builder.insert_element(undefined, value, ir.Constant(_I32, 0))
        zeros = ir.Constant(self.int32, [0] * self.layout.lanes)
        return self.builder.shuffle_vector(one, undefined, zeros)

    def call(self, name, returned, *args):
        kind = ir.FunctionType(returned, [arg.type for arg in args])
        function = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.x86.{name}")
        return self.builder.call(function, args)

    def add_products(self, total, x, w):
        """Add the products of bytes to `total`, each sum to the lane that they lie in."""
        if self.layout.narrow:
            x, w = (self.builder.bitcast(v, self.int8) for v in (x, w))
            return self.builder.add(total, self.call("avx2.pmadd.ub.sw", self.int16, x, w))
        bits = 32 * self.layout.lanes
        return self.call(f"avx512.vpdpbusd.{bits}", self.int32, total, x, w)

    def widened(self, total):
        """Return 32-bit sums of a chunk's 16-bit sums, two in each lane."""
        if not self.layout.narrow:
            return total
        ones = ir.Constant(self.int16, [1] * 2 * self.layout.lanes)
        return self.call("avx2.pmadd.wd", self.int32, total, ones)


@no_type_check
def _add_group(code, sums, rows, at, latents):
    """Append the products of four coordinates, `at` bytes into the rows, to a tile's sums."""
    vectors, size = code.layout.vectors, GROUP * code.layout.lanes
    w = [code.load(code.at(latents, size * v), code.int32) for v in range(vectors)]
    for r, row in enumerate(rows):
        x = code.broadcast(code.load(code.builder.add(row, at), _I32))
        for v in range(vectors):
            q = r * vectors + v
            sums[q] = code.add_products(sums[q], x, w[v])


@no_type_check
def _sums(code, x, stride, weights, starts, chunks, groups):
    """Append two nested loops that leave the tile's sums, 32 bits wide, row by row."""
    builder, layout = code.builder, code.layout
    n = ROWS * layout.vectors
    size = GROUP * layout.lanes
    entry = builder.block
    outer, inner, after, done = (
        builder.append_basic_block(name) for name in ("chunk", "group", "widen", "done")
    )
    rows = [x]
    for _ in range(1, ROWS):
        rows.append(builder.add(rows[-1], stride))
    builder.branch(outer)

    def counter(before):
        found = builder.phi(_I64)
        found.add_incoming(ir.Constant(_I64, 0), before)
        return found

    builder.position_at_end(outer)
    chunk = counter(entry)
    totals = [builder.phi(code.int32) for _ in range(n)]
    for total in totals:
        total.add_incoming(ir.Constant(code.int32, [0] * layout.lanes), entry)
    # What x is too large by has been summed beforehand, and is taken off at the start.
    first = code.at(starts, chunk, size * layout.vectors)
    kind = code.int16 if layout.narrow else code.int32
    begins = [code.load(code.at(first, size * v), kind) for v in range(layout.vectors)]
    before = builder.mul(chunk, groups)
    here = code.at(weights, before, size * layout.vectors)
    across = code.at(ir.Constant(_I64, 0), before, GROUP)
    builder.branch(inner)

    builder.position_at_end(inner)
    group = counter(outer)
    sums = [builder.phi(kind) for _ in range(n)]
    for q, one in enumerate(sums):
        one.add_incoming(begins[q % layout.vectors], outer)
    current = list(sums)
    unrolled = 2
    for step in range(unrolled):
        place = code.at(group, step)
        latents = code.at(here, place, size * layout.vectors)
        _add_group(code, current, rows, code.at(across, place, GROUP), latents)
    following = code.at(group, unrolled)
    group.add_incoming(following, inner)
    for one, new in zip(sums, current, strict=True):
        one.add_incoming(new, inner)
    more = builder.icmp_unsigned("<", following, groups)
    builder.cbranch(more, inner, after)

    builder.position_at_end(after)
    added = [builder.add(a, code.widened(b)) for a, b in zip(totals, current, strict=True)]
    following = code.at(chunk, 1)
    chunk.add_incoming(following, after)
    for total, new in zip(totals, added, strict=True):
        total.add_incoming(new, after)
    builder.cbranch(builder.icmp_unsigned("<", following, chunks), outer, done)
    builder.position_at_end(done)
    return added


@intrinsic
@no_type_check
def tile(
    _context: Any, x, stride, weights, starts, chunks, groups, rows, latents, between, out, ldo
):
    """Write `a_i a_j Σ_k x_ik w_jk + b_j + c_i c_j + d_i d_j` of six rows and a tile's latents.

    All arguments are addresses, but for the number of chunks, of groups in each, and the bytes
    between rows of `x` (unsigned bytes), of `latents` and of `out` (float32). `weights` and
    `starts` are one tile's, as `int8_rounding` packs them. `rows` has a, c and d of each row,
    one after the other, `latents` rows with a, b, c and d of each latent.
    """
    signature = types.void(*[types.intp] * 11)

    def generate(context, builder, _signature, args):
        x, stride, weights, starts, chunks, groups, rows, latents, between, out, ldo = args
        code = _Code(builder, HERE)
        sums = _sums(code, x, stride, weights, starts, chunks, groups)
        size = 4 * HERE.lanes
        for v in range(HERE.vectors):
            place = code.at(latents, size * v)
            a, b, c, d = (code.load(code.at(place, between, q), code.float32) for q in range(4))
            for r in range(ROWS):
                a_i, c_i, d_i = (
                    code.broadcast(code.load(code.at(rows, 12 * r + 4 * q), ir.FloatType()))
                    for q in range(3)
                )
                sizes = builder.sitofp(sums[r * HERE.vectors + v], code.float32)
                value = builder.fadd(builder.fmul(builder.fmul(sizes, a), a_i), b)
                value = builder.fadd(value, builder.fmul(c_i, c))
                value = builder.fadd(value, builder.fmul(d_i, d))
                code.store(value, code.at(code.at(out, ldo, r), size * v))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
@no_type_check
def dot_of_bytes(_context: Any, x, w, n):
    """Return the inner product of `n` bytes, a multiple of 128, at two addresses, int32.

    Those of `x` are unsigned, those of `w` signed. With the narrow layout the sizes of two that
    are side by side in `w` add up to 128 at most, so that two products fit 16 bits.
    """
    signature = types.int32(*[types.intp] * 3)

    def generate(_context, builder, _signature, args):
        code = _Code(builder, HERE)
        *sides, n = args
        step = GROUP * code.layout.lanes
        entry = builder.block
        loop, done = (builder.append_basic_block(name) for name in ("bytes", "summed"))
        builder.branch(loop)
        builder.position_at_end(loop)
        at = builder.phi(_I64)
        at.add_incoming(ir.Constant(_I64, 0), entry)
        nothing = ir.Constant(code.int32, [0] * code.layout.lanes)
        zero = ir.Constant(code.int16, [0] * 2 * code.layout.lanes)
        totals = [builder.phi(code.int32) for _ in range(2)]
        added = []
        for side, total in enumerate(totals):
            total.add_incoming(nothing, entry)
            place = code.at(at, side, step)
            a, b = (code.load(builder.add(p, place), code.int32) for p in sides)
            if code.layout.narrow:
                pairs = code.widened(code.add_products(zero, a, b))
                added.append(builder.add(total, pairs))
            else:
                added.append(code.add_products(total, a, b))
            total.add_incoming(added[-1], loop)
        following = code.at(at, len(totals), step)
        at.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, n), loop, done)
        builder.position_at_end(done)
        return sum_of_lanes(builder, builder.add, builder.add(*added))

    return signature, generate


@intrinsic
@no_type_check
def mix_eight(_context: Any, source, target, stride):
    """Turn eight numbers, `stride` bytes apart, by a Hadamard matrix; and seven such beside.

    `source` and `target` are addresses of float32. The matrix is not scaled: norms grow by the
    root of eight.
    """
    signature = types.void(*[types.intp] * 3)

    def generate(context, builder, _signature, args):
        code = _Code(builder, LAYOUTS["avx2"])
        source, target, stride = args
        values = [code.load(code.at(source, stride, i), code.float32) for i in range(8)]
        for apart in (1, 2, 4):
            pairs = [(i, i ^ apart) for i in range(8)]
            values = [
                builder.fadd(values[i], values[j])
                if i < j
                else builder.fsub(values[j], values[i])
                for i, j in pairs
            ]
        for i, value in enumerate(values):
            code.store(value, code.at(target, stride, i))
        return context.get_dummy_value()

    return signature, generate
