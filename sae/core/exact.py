"""Pre-activations of single entries, as exact as they can be, and the choice among them.

The value of an entry is `⟨x_i, w_j⟩ + b_j`, of float32 numbers computed in float64 and rounded
once. A product of two float32 numbers is exact in float64, and the order of the sum is fixed,
so the value is the same on every processor, whatever found the entry.
"""
# Kernels are no Python: numba finds the types of their arguments.
# ruff: noqa: ANN001, ANN201, ANN202

from typing import Any, no_type_check

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sae.core.jit import compiled

_LANES = 8
_SIDE_BY_SIDE = 2
# Bytes that memory gives at once, and entries between asking and needing them.
_LINE = 64
_AHEAD = 2


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
    """Sum over the first `d` coordinates, a multiple of 16, of float64 `x` and any `row`."""
    signature = types.float64(x, row, types.intp)
    stored = ir.FloatType() if row.dtype == types.float32 else ir.DoubleType()

    def generate(context, builder, signature, args):
        kind = ir.VectorType(ir.DoubleType(), _LANES)
        addresses = [
            builder.ptrtoint(
                cgutils.create_struct_proxy(t)(context, builder, a).data, ir.IntType(64)
            )
            for t, a in zip(signature.args[:2], args[:2], strict=True)
        ]

        def load(address, element, place):
            size = 8 if isinstance(element, ir.DoubleType) else 4
            at = builder.add(address, builder.mul(place, ir.Constant(ir.IntType(64), size)))
            pointer = builder.inttoptr(at, ir.VectorType(element, _LANES).as_pointer())
            return builder.load(pointer, align=1)

        multiply_add = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind] * 3), "llvm.fmuladd.v8f64"
        )
        entry = builder.block
        loop, done = (builder.append_basic_block(name) for name in ("dot", "dotted"))
        nothing = ir.Constant(kind, [0.0] * _LANES)
        step = ir.Constant(ir.IntType(64), _LANES * _SIDE_BY_SIDE)
        builder.cbranch(builder.icmp_signed("<", args[2], step), done, loop)
        builder.position_at_end(loop)
        at = builder.phi(ir.IntType(64))
        at.add_incoming(ir.Constant(ir.IntType(64), 0), entry)
        totals, added = [builder.phi(kind) for _ in range(_SIDE_BY_SIDE)], []
        for side, total in enumerate(totals):
            total.add_incoming(nothing, entry)
            place = builder.add(at, ir.Constant(ir.IntType(64), side * _LANES))
            a = load(addresses[0], ir.DoubleType(), place)
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
    """Return `⟨x, row⟩` in float64; `x` is float64 already."""
    whole = len(row) - len(row) % (_LANES * _SIDE_BY_SIDE)
    total = _dot_of_whole(x, row, whole)
    for q in range(whole, len(row)):
        total += x[q] * row[q]
    return total


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
