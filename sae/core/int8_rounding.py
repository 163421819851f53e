"""Rows and latents as 8-bit integers, with bounds on what products of them are off by.

Rows and latents are turned by one orthogonal matrix before they are rounded: random signs and a
Hadamard matrix on every eight coordinates, twice. Inner products stay what they are, and a
coordinate that is large in many rows is spread over the others, so that all are rounded finely.
A row is `x = s x₁ + s₂ x₂ + e₂` with integers of 8 bits and `e₁ = s₂ x₂ + e₂`; a latent is
`w = t p₁ + t₂ p₂ + f₂`, `f₁ = t₂ p₂ + f₂`. By Cauchy and Schwarz

    |x·w − s t x₁·p₁| ≤ ‖e₁‖ ‖w‖ + (‖x‖ + ‖e₁‖) ‖f₁‖,

which the fast product uses to rule out most latents, and

    |x·w − s t x₁·p₁ − s t₂ x₁·p₂ − s₂ t x₂·p₁|
        ≤ (‖e₁‖ + ‖e₂‖) (‖f₁‖ + ‖f₂‖) + ‖e₂‖ ‖w‖ + (‖x‖ + ‖e₂‖) ‖f₂‖,

much smaller, which rules out most of the others. Rounding in float32, of the turned
vectors, the scales and the sums, is below 2⁻¹⁶ ‖x‖ ‖w‖, which is added to both.
"""
# Kernels are no Python: numba finds the types of their arguments.
# ruff: noqa: ANN001, ANN201, ANN202

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae.core.int8_tile import CHUNK, GROUP, HERE, mix_eight
from sae.core.jit import compiled, in_threads
from sae.core.vectors import dot

SLACK = np.float32(2.0**-16)
"""What rounding in float32 adds to a bound, in units of the norms."""
# What squares of tiny numbers lose.
_TINY = 1e-17
FINE = 127
"""Units of a second integer in one of the first."""
OFFSET = 128
"""Added to the integers of rows, because the instructions multiply unsigned by signed bytes."""

# Of first and of second integers. Two products with the latter fit 16 bits, whatever they are.
_LARGEST, _LARGEST_FINE = 127, 63
# Where products are summed in 16 bits. A pair of a latent's integers: 255 · 128 is the largest
# sum of two products that 16 bits hold. And the norm of the integers of a chunk's lane, which
# is every other pair of its coordinates: a lane's sum is below 213 · 153 (Cauchy and Schwarz).
_LARGEST_PAIR = 128
_LONGEST_X, _LONGEST_W = 213, 153

TURNED = 64
"""Coordinates that are mixed with one; widths are filled up to a multiple."""

if HERE is not None:
    WIDTH, _NARROW = HERE.width, HERE.narrow


class Packed(NamedTuple):
    """Latents as integers; `n_tiles · width` of them, the last ones being nothing."""

    signs: np.ndarray
    """(2, width) float32: signs of the rotation; the second ones are eighths."""
    centre: np.ndarray
    """(d_in,): taken off each row before it is turned, and added by the shifts."""
    tiles: np.ndarray
    """(tile, group of coordinates, latent, coordinate) int8: `p₁`."""
    starts: np.ndarray
    """(tile, chunk, latent) int32: where sums start, because rows are stored too large."""
    numbers: np.ndarray
    """(4, latent) float32: t, what is added to the products, upper bounds of ‖w‖ and ‖f₁‖."""
    fine: np.ndarray
    """(latent, 2 · width) int8: `p₂` and `p₁`."""
    facts: np.ndarray
    """(latent, 6) float32: t, upper bounds of ‖w‖, ‖f₁‖ and ‖f₂‖, what the number that is added
    is too large by at most, and the sum of all integers. Side by side, as they are read where
    one latent is looked at; `numbers` are read for a tile's latents together."""


def packed(
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    bound: NDArray[np.float32],
    centre: NDArray[np.float32],
) -> Packed:
    """Return the latents as integers, for rows that are near `centre`."""
    m, d = weight.shape
    width = -(-d // TURNED) * TURNED
    n_tiles = -(-m // WIDTH)
    chunks = width // CHUNK if _NARROW else 1
    # Any signs do; the same ones make the same time.
    signs = np.where(np.random.default_rng(0).integers(0, 2, (2, width)) == 1, 1.0, -1.0)
    # Two mixes of eight make vectors eight times as long.
    signs[1] /= 8
    found = Packed(
        signs.astype(np.float32),
        centre,
        np.empty((n_tiles, width // GROUP, WIDTH, GROUP), np.int8),
        np.empty((n_tiles, chunks, WIDTH), np.int32),
        np.empty((4, n_tiles * WIDTH), np.float32),
        np.empty((n_tiles * WIDTH, 2 * width), np.int8),
        np.empty((n_tiles * WIDTH, 6), np.float32),
    )
    in_threads(
        lambda first, last: _pack_tiles(first, last, weight, bias, bound, found), n_tiles, 32
    )
    return found


@compiled
def _norm(values):
    """Return an upper bound of the norm of some numbers."""
    larger = np.float32(1.00001 + 1e-7 * len(values))
    return np.sqrt(dot(values, values)) * larger + np.float32(_TINY)


@compiled
def _turn(row, centre, signs, between, out):
    """Write the row less the centre, turned, with zeros behind its end before.

    Signs, a mix of coordinates an eighth of the width apart, signs, a mix of coordinates eight
    apart: each spreads over 64 others. `between` is memory.
    """
    d, width = len(row), len(out)
    first, second = signs[0], signs[1]
    for q in range(d):
        out[q] = (row[q] - centre[q]) * first[q]
    out[d:] = 0
    apart = width // 8
    source, target = out.ctypes.data, between.ctypes.data
    for q in range(0, apart, 8):
        mix_eight(source + 4 * q, target + 4 * q, 4 * apart)
    for q in range(width):
        between[q] *= second[q]
    for q in range(0, width, TURNED):
        mix_eight(target + 4 * q, source + 4 * q, 4 * 8)


@compiled
def _largest_size(values, step):
    """Return the largest size of a number, or with step 2 of two neighbours' sizes together.

    By their bits, as integers, of which the processor compares several at once; what is no
    number is larger than all others.
    """
    most = np.int32(0)
    if step == 1:
        for bits in values.view(np.int32):
            most = max(most, bits & np.int32(0x7FFFFFFF))
    else:
        sizes = np.empty(len(values) // 2, np.float32)
        for q in range(len(sizes)):
            sizes[q] = abs(values[2 * q]) + abs(values[2 * q + 1])
        for bits in sizes.view(np.int32):
            most = max(most, bits)
    found = np.empty(1, np.int32)
    found[0] = most
    return found.view(np.float32)[0]


@compiled
def _longest_lane(values):
    """Return the largest norm of a lane: every other pair of a chunk's coordinates."""
    most = np.float32(0)
    for start in range(0, len(values), CHUNK):
        v = values[start : start + CHUNK]
        low = high = np.float32(0)
        for q in range(0, CHUNK, GROUP):
            low += v[q] * v[q] + v[q + 1] * v[q + 1]
            high += v[q + 2] * v[q + 2] + v[q + 3] * v[q + 3]
        most = max(most, low, high)
    return np.sqrt(most)


@compiled
def _scale(turned, longest, paired):
    """Return the unit in which the numbers become integers that are not too large."""
    scale = _largest_size(turned, 1) / np.float32(_LARGEST)
    if _NARROW:
        # Rounding makes a pair larger by one at most, and a lane of 16 numbers longer by 2.
        if paired:
            pair = _largest_size(turned, 2)
            scale = max(scale, pair / np.float32(_LARGEST_PAIR - 1.01))
        scale = max(scale, _longest_lane(turned) / np.float32(longest - 2.01))
    return scale


@compiled
def _round(turned, longest, paired, coarse, fine):
    """Write `x₁` and `x₂`, destroy `turned`; returns s and bounds of ‖x‖, ‖e₁‖, ‖e₂‖.

    Of what is not finite, or smaller than 1e-30, the integers are zeros.
    """
    n = len(turned)
    norm = _norm(turned)
    scale = _scale(turned, longest, paired)
    if not (1e-30 < scale < 1e30 and norm < 1e30):
        for q in range(n):
            coarse[q] = 0
            fine[q] = 0
        far = norm if norm < 1e30 else np.float32(np.inf)
        return np.float32(0), far, far, far
    inverse = np.float32(1) / scale
    for q in range(n):
        integer = np.rint(turned[q] * inverse)
        coarse[q] = np.int8(integer)
        turned[q] -= scale * integer
    first = _norm(turned)
    scale_2 = scale * np.float32(1 / FINE)
    inverse *= np.float32(FINE)
    for q in range(n):
        integer = np.rint(turned[q] * inverse)
        integer = min(max(integer, np.float32(-_LARGEST_FINE)), np.float32(_LARGEST_FINE))
        fine[q] = np.int8(integer)
        turned[q] -= scale_2 * integer
    return scale, norm, first, _norm(turned)


@compiled
def _pack_tile(p, fine, tiles, starts):
    """Write the integers of one tile's latents as the product reads them."""
    n_chunks = starts.shape[1]
    n_groups = tiles.shape[1] // n_chunks
    four = tiles[p].reshape(-1).view(np.int32)
    for at in range(WIDTH):
        p1 = fine[p * WIDTH + at, fine.shape[1] // 2 :]
        fours = p1.view(np.int32)
        for c in range(n_chunks):
            low, high = np.int64(0), np.int64(0)
            for g in range(c * n_groups, (c + 1) * n_groups):
                four[g * WIDTH + at] = fours[g]
                low += np.int64(p1[GROUP * g]) + np.int64(p1[GROUP * g + 1])
                high += np.int64(p1[GROUP * g + 2]) + np.int64(p1[GROUP * g + 3])
            low, high = -OFFSET * low, -OFFSET * high
            # Of 16 bits there are two, each modulo 2^16.
            starts[p, c, at] = (low & 0xFFFF) | (high << 16) if _NARROW else low + high


@compiled
def _pack_tiles(first, last, weight, bias, bound, packed):
    """Fill what `packed` holds of the tiles from `first` to `last` of the latents `weight`.

    Shifts are those of bias less bound.
    """
    m, d = weight.shape
    width = packed.signs.shape[1]
    fine, numbers, facts = packed.fine, packed.numbers, packed.facts
    nothing, turned = np.zeros(d, np.float32), np.empty((2, width), np.float32)
    wide = packed.centre.astype(np.float64)
    far = np.sqrt(dot(wide, wide))
    for p in range(first, last):
        for j in range(p * WIDTH, (p + 1) * WIDTH):
            if j >= m:
                fine[j] = 0
                numbers[:, j] = 0
                facts[j] = 0
                numbers[1, j] = -np.inf
                continue
            p2, p1 = fine[j, :width], fine[j, width:]
            _turn(weight[j], nothing, packed.signs, turned[1], turned[0])
            scale, norm, f1, f2 = _round(turned[0], _LONGEST_W, True, p1, p2)
            moved = dot(wide, weight[j])
            size = abs(bias[j]) + abs(bound[j]) + abs(moved)
            # In float64 sums are rounded too, and what cancels in them may be large.
            slack = 2.0**-20 * size + 2.0**-40 * far * norm + 1e-32
            shift = np.float32(moved + bias[j] - bound[j] + slack)
            # What is not a number rules nothing out.
            if not shift < np.inf:
                shift, norm = np.float32(0), np.float32(np.inf)
            total = np.int32(0)
            for integer in fine[j]:
                total += integer
            numbers[0, j], numbers[1, j], numbers[2, j], numbers[3, j] = scale, shift, norm, f1
            facts[j, 0], facts[j, 1], facts[j, 2], facts[j, 3] = scale, norm, f1, f2
            facts[j, 4], facts[j, 5] = 2 * slack, total
        _pack_tile(p, fine, packed.tiles, packed.starts)


@compiled
def round_row(x, packed, turned, integers, numbers, sizes):
    """Turn a row and round it; `turned` is memory.

    Fills `integers` with `x₁ + 128` and `x₂ + 128` (2 · width, uint8), `numbers` with what the
    product adds up, and `sizes` with bounds of ‖x‖, ‖e₁‖ and ‖e₂‖.
    """
    width = turned.shape[1]
    signed = integers.view(np.int8)
    _turn(x, packed.centre, packed.signs, turned[1], turned[0])
    scale, whole, e1, e2 = _round(turned[0], _LONGEST_X, False, signed[:width], signed[width:])
    sizes[0], sizes[1], sizes[2] = whole, e1, e2
    numbers[0], numbers[1], numbers[2] = scale, e1 + SLACK * whole, whole + e1
    for q in range(2 * width):
        # The same as to add 128.
        integers[q] ^= np.uint8(OFFSET)


@compiled
def second_bound(sizes, r, facts, j):
    """Return the second bound on the error, of row r and latent j."""
    whole, e1, e2 = sizes[r, 0], sizes[r, 1], sizes[r, 2]
    norm, f1, f2 = facts[j, 1], facts[j, 2], facts[j, 3]
    return (e1 + e2) * (f1 + f2) + (whole + e2) * f2 + (e2 + SLACK * whole) * norm
