"""What loops over vectors are made of, in the instructions that LLVM picks for them.

Numba alone adds numbers up one after the other, because to add them side by side rounds
differently. Here the order of a sum is written down, and is the same on every processor.
"""
# Kernels are no Python: numba finds the types of their arguments.
# ruff: noqa: ANN001, ANN201, ANN202

from typing import Any, no_type_check

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sae.core.jit import compiled

# Bytes of sums that are added up side by side in one vector, and vectors.
_BYTES = 64
_SIDE_BY_SIDE = 2
# Bytes that memory gives at once.
_LINE = 64


@no_type_check
def sum_of_lanes(builder, add, vector):
    """Append the sum of a vector's numbers: of its halves, again and again."""
    int32 = ir.IntType(32)
    width = vector.type.count
    while width > 1:
        width //= 2
        undefined = ir.Constant(vector.type, ir.Undefined)
        places = [list(range(first, first + width)) for first in (0, width)]
        halves = [ir.Constant(ir.VectorType(int32, width), half) for half in places]
        vector = add(*(builder.shuffle_vector(vector, undefined, half) for half in halves))
    return builder.extract_element(vector, ir.Constant(int32, 0))


@intrinsic
@no_type_check
def _dot_of_whole(_context: Any, x, row, d):
    """Sum over the first `d` coordinates, a multiple of those of a loop, in the type of `x`."""
    signature = x.dtype(x, row, types.intp)
    given, stored = (
        ir.FloatType() if side.dtype == types.float32 else ir.DoubleType() for side in (x, row)
    )
    lanes = _BYTES // (x.dtype.bitwidth // 8)

    def generate(context, builder, signature, args):
        kind = ir.VectorType(given, lanes)
        addresses = [
            builder.ptrtoint(
                cgutils.create_struct_proxy(t)(context, builder, a).data, ir.IntType(64)
            )
            for t, a in zip(signature.args[:2], args[:2], strict=True)
        ]

        def load(address, element, place):
            size = 8 if isinstance(element, ir.DoubleType) else 4
            at = builder.add(address, builder.mul(place, ir.Constant(ir.IntType(64), size)))
            pointer = builder.inttoptr(at, ir.VectorType(element, lanes).as_pointer())
            return builder.load(pointer, align=1)

        multiply_add = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(kind, [kind] * 3),
            f"llvm.fmuladd.v{lanes}f{x.dtype.bitwidth}",
        )
        entry = builder.block
        loop, done = (builder.append_basic_block(name) for name in ("dot", "dotted"))
        nothing = ir.Constant(kind, [0.0] * lanes)
        step = ir.Constant(ir.IntType(64), lanes * _SIDE_BY_SIDE)
        builder.cbranch(builder.icmp_signed("<", args[2], step), done, loop)
        builder.position_at_end(loop)
        at = builder.phi(ir.IntType(64))
        at.add_incoming(ir.Constant(ir.IntType(64), 0), entry)
        totals, added = [builder.phi(kind) for _ in range(_SIDE_BY_SIDE)], []
        for side, total in enumerate(totals):
            total.add_incoming(nothing, entry)
            place = builder.add(at, ir.Constant(ir.IntType(64), side * lanes))
            a = load(addresses[0], given, place)
            b = load(addresses[1], stored, place)
            if b.type != kind:
                b = builder.fpext(b, kind)
            added.append(builder.call(multiply_add, [a, b, total]))
            total.add_incoming(added[-1], loop)
        following = builder.add(at, step)
        at.add_incoming(following, loop)
        more = builder.icmp_signed("<", following, args[2])
        builder.cbranch(more, loop, done)
        builder.position_at_end(done)
        ends = []
        for new in added:
            end = builder.phi(kind)
            end.add_incoming(nothing, entry)
            end.add_incoming(new, loop)
            ends.append(end)
        return sum_of_lanes(builder, builder.fadd, builder.fadd(*ends))

    return signature, generate


@compiled
def dot(x, row):
    """Return `⟨x, row⟩`, summed in the type of `x`; that of `row` is no wider."""
    whole = len(row) - len(row) % (_BYTES // x.itemsize * _SIDE_BY_SIDE)
    total = _dot_of_whole(x, row, whole)
    for q in range(whole, len(row)):
        total += x[q] * row[q]
    return total


@intrinsic
@no_type_check
def prefetch(_context: Any, address, size):
    """Ask for `size` bytes from an address on, which will be read soon."""
    signature = types.void(types.intp, types.intp)

    def generate(context, builder, _signature, args):
        int32, int64 = ir.IntType(32), ir.IntType(64)
        pointer = int64.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, int32, int32, int32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        line = ir.Constant(int64, _LINE)
        with cgutils.for_range(builder, builder.udiv(args[1], line), intp=int64) as loop:
            at = builder.add(args[0], builder.mul(loop.index, line))
            for_reading, near, data = (ir.Constant(int32, n) for n in (0, 2, 1))
            builder.call(function, [builder.inttoptr(at, pointer), for_reading, near, data])
        return context.get_dummy_value()

    return signature, generate


@intrinsic
@no_type_check
def exceeding(_context: Any, address, bound):
    """Return which of 64 numbers at an address are not at or below `bound`, in bits.

    The numbers are of the type of `bound`.
    """
    signature = types.uint64(types.intp, bound)
    element = ir.FloatType() if bound == types.float32 else ir.DoubleType()

    def generate(_context, builder, _signature, args):
        int32, kind = ir.IntType(32), ir.VectorType(element, 64)
        numbers = builder.load(builder.inttoptr(args[0], kind.as_pointer()), align=1)
        nothing = ir.Constant(kind, ir.Undefined)
        one = builder.insert_element(nothing, args[1], ir.Constant(int32, 0))
        zeros = ir.Constant(ir.VectorType(int32, 64), [0] * 64)
        bounds = builder.shuffle_vector(one, nothing, zeros)
        return builder.bitcast(builder.fcmp_unordered(">", numbers, bounds), ir.IntType(64))

    return signature, generate


@intrinsic
@no_type_check
def lowest_bit(_context: Any, bits):
    """Return the place of the lowest bit that is set; there has to be one."""
    signature = types.int64(types.uint64)

    def generate(_context, builder, _signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return signature, generate
