"""Entries of `x @ weight.T + bias` that are chosen, found by products of 8-bit integers."""
# Kernels are no Python: numba finds the types of their arguments.
# ruff: noqa: ANN001, ANN201, ANN202, PLR0913, PLR0917

import numpy as np

from sae.core.exact import (
    drop_below,
    exceeding,
    fill_exact,
    keep_above,
    keep_top_k,
    kth_largest,
    lowest_bit,
)
from sae.core.int8_rounding import FINE, WIDTH, round_row, second_bound
from sae.core.int8_tile import ROWS, dot_of_bytes, tile
from sae.core.jit import compiled

BLOCK_ROWS = 384
"""Rows that are screened at once: their integers stay in a core's own cache."""
# Latents whose integers stay there while those rows pass by.
_GROUP_LATENTS = 128
# Latents from whose products the k-th largest is guessed.
_SAMPLE = 512
# Groups of latents after which guesses at a k-th largest are raised.
_RAISE_EVERY = 12


@compiled
def _bounds(rows, packed, first, last, out, at):
    """Write upper bounds for a block's rows and the tiles from `first` to `last`.

    They go to the columns of `out` from `at` on.
    """
    coarse, numbers = rows
    chunks = packed.starts.shape[1]
    groups = packed.tiles.shape[1] // chunks
    for r in range(0, len(coarse), ROWS):
        for p in range(first, last):
            tile(
                coarse[r:].ctypes.data, coarse.shape[1],
                packed.tiles[p].ctypes.data, packed.starts[p].ctypes.data, chunks, groups,
                numbers[r:].ctypes.data,
                packed.numbers.ctypes.data + 4 * WIDTH * p, 4 * packed.numbers.shape[1],
                out[r:].ctypes.data + 4 * (at + WIDTH * (p - first)), out.strides[0],
            )  # fmt: skip


@compiled
def _collect_row(rows, r, latents, fine_latents, upper, n, start, guess, columns, values, ends):
    """Append the entries of row r that both bounds leave open, of `n` latents from `start` on.

    Returns how many the first bound alone, in `upper`, leaves open.
    """
    fine, absolute, numbers, sizes = rows
    width = fine.shape[1]
    x, x_size = fine.ctypes.data + r * width, absolute.ctypes.data + r * width
    w = fine_latents.ctypes.data
    unit, a, b = numbers[r, 0] * np.float32(1 / FINE), numbers[r, 1], numbers[r, 2]
    at = ends[r]
    seen = 0
    for begin in range(0, n, 64):
        bits = exceeding(upper.ctypes.data + 4 * begin, guess)
        if n - begin < 64:
            bits &= (np.uint64(1) << np.uint64(n - begin)) - np.uint64(1)
        while bits:
            q = begin + lowest_bit(bits)
            bits &= bits - np.uint64(1)
            seen += 1
            j = start + q
            more = (
                unit * latents[0, j] * np.float32(dot_of_bytes(x, x_size, w + j * width, width))
            )
            first = a * latents[2, j] + b * latents[3, j]
            value = upper[q] - first + more + second_bound(sizes, r, latents, j)
            if not value <= guess:
                columns[at] = j
                values[at] = value
                at += 1
    ends[r] = at
    return seen


@compiled
def _largest(values, n):
    """Return the n-th largest of many values, n being small."""
    found = np.empty(n, np.float32)
    for at in range(n):
        found[at] = -np.inf
    for value in values:
        if value > found[n - 1]:
            at = n - 1
            while at > 0 and found[at - 1] < value:
                found[at] = found[at - 1]
                at -= 1
            found[at] = value
    return found[n - 1]


@compiled
def _guesses(block, packed, k, m, upper, guesses):
    """Guess what more than `k` of `m` entries of each row exceed, but not many more.

    From tiles all over the dictionary; not from the last one, which may not be whole.
    """
    n_tiles = len(packed.tiles)
    taken = min(_SAMPLE // WIDTH, n_tiles - 1)
    sample = np.empty(taken * WIDTH, np.float32)
    for s in range(taken):
        p = s * (n_tiles - 1) // taken
        _bounds(block, packed, p, p + 1, upper, WIDTH * s)
    expected = k * len(sample) / m
    place = int(expected + 4 * np.sqrt(expected)) + 2
    for r in range(len(guesses)):
        guesses[r] = 0
        if place >= len(sample):
            continue
        a, b = block[1][r, 1], block[1][r, 2]
        for s in range(taken):
            first = WIDTH * (s * (n_tiles - 1) // taken)
            for q in range(WIDTH):
                norm, error = packed.numbers[2, first + q], packed.numbers[3, first + q]
                sample[WIDTH * s + q] = upper[r, WIDTH * s + q] - (a * norm + b * error)
        guesses[r] = max(np.float32(0), _largest(sample, place))


@compiled
def _certain(rows, r, packed, k, columns, values, n):
    """Return what the k-th largest of n entries of row r reaches for certain, at least zero."""
    if n < k:
        return np.float32(0)
    low = np.empty(n, np.float32)
    for c in range(n):
        far = np.float32(2) * second_bound(rows[3], r, packed.numbers, columns[c])
        low[c] = values[c] - far - packed.numbers[5, columns[c]]
        if not low[c] > 0:
            low[c] = 0
    return kth_largest(low, k)


@compiled
def _collect(block, rows, packed, k, m, upper, guesses, columns, values, ends, seen):
    """List the entries of a block's rows that the bounds leave open.

    With `k`, guesses rise on the way to what the entries that were seen reach for certain.
    """
    across = max(1, _GROUP_LATENTS // WIDTH)
    n_tiles = len(packed.tiles)
    n_groups = -(-n_tiles // across)
    for group in range(n_groups):
        p = group * across
        last = min(p + across, n_tiles)
        _bounds(block, packed, p, last, upper, 0)
        start = p * WIDTH
        n = min(last * WIDTH, m) - start
        for r in range(len(ends)):
            seen[r] += _collect_row(
                rows, r, packed.numbers, packed.fine, upper[r], n, start,
                guesses[r], columns[r], values[r], ends,
            )  # fmt: skip
        if k and group < n_groups - 1 and group % _RAISE_EVERY == _RAISE_EVERY - 1:
            for r in range(len(ends)):
                least = _certain(rows, r, packed, k, columns[r], values[r], ends[r])
                if least > guesses[r]:
                    # Equals are still to be found.
                    guesses[r] = np.nextafter(least, np.float32(-1))


@compiled
def _close_top_k(block, rows, packed, k, m, upper, guesses, columns, values, ends, seen):
    """Leave out entries that are not among the `k` largest for certain."""
    for r in range(len(ends)):
        least = _certain(rows, r, packed, k, columns[r], values[r], ends[r])
        if guesses[r] > 0 and not least > guesses[r]:
            # Too high a guess may have hidden something, so this row is collected once more.
            guesses[r] = np.nextafter(least, np.float32(-1))
            begin = r - r % ROWS
            strip = (block[0][begin : begin + ROWS], block[1][begin : begin + ROWS])
            ends[r] = 0
            across = max(1, _GROUP_LATENTS // WIDTH)
            for p in range(0, len(packed.tiles), across):
                last = min(p + across, len(packed.tiles))
                _bounds(strip, packed, p, last, upper, 0)
                start = p * WIDTH
                seen[r] += _collect_row(
                    rows, r, packed.numbers, packed.fine, upper[r - begin],
                    min(last * WIDTH, m) - start, start, guesses[r],
                    columns[r], values[r], ends,
                )  # fmt: skip
            least = _certain(rows, r, packed, k, columns[r], values[r], ends[r])
        ends[r] = drop_below(least, columns[r], values[r], ends[r])


@compiled
def screen_rows(x, weight, bias, bound, k, packed, columns, values, counts, work):
    """Choose entries of a few rows of `x @ weight.T + bias`, exactly.

    Row i gets `counts[i]` columns and values, at the front of its row of `columns` and
    `values`, which are (row, latent) and are written where they are needed only. `work` says
    how many entries of the row the first bound left open, and how many values were computed.
    """
    m, d = weight.shape
    width = packed.signs.shape[1]
    padded = -(-len(x) // ROWS) * ROWS
    coarse, fine = np.zeros((padded, width), np.uint8), np.empty((len(x), 2 * width), np.int8)
    absolute, turned = np.empty_like(fine), np.empty((2, width), np.float32)
    numbers, sizes = np.zeros((padded, 3), np.float32), np.empty((len(x), 3), np.float32)
    # Rows start at different places of the cache's lines.
    upper = np.empty((padded, max(_GROUP_LATENTS, _SAMPLE) + 16), np.float32)
    for r in range(len(x)):
        round_row(x[r], packed, turned, coarse[r], fine[r], absolute[r], numbers[r], sizes[r])
    block, rows = (coarse, numbers), (fine, absolute, numbers, sizes)
    guesses = np.zeros(len(x), np.float32)
    ends, seen = np.zeros(len(x), np.int64), np.zeros(len(x), np.int64)
    if k:
        _guesses(block, packed, k, m, upper, guesses)
    _collect(block, rows, packed, k, m, upper, guesses, columns, values, ends, seen)
    if k:
        _close_top_k(block, rows, packed, k, m, upper, guesses, columns, values, ends, seen)
    x64 = np.empty(d, np.float64)
    for r in range(len(x)):
        n = ends[r]
        work[r, 0], work[r, 1] = seen[r], n
        fill_exact(x[r], x64, weight, bias, columns[r], values[r], n)
        if k:
            counts[r] = keep_top_k(columns[r], values[r], n, k)
        else:
            counts[r] = keep_above(columns[r], values[r], n, bound)
