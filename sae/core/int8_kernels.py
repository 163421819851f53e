"""Entries of `x @ weight.T + bias` that are chosen, found by products of 8-bit integers."""
# Kernels are no Python: numba finds the types of their arguments.
# ruff: noqa: ANN001, ANN201, ANN202, PLR0913, PLR0917

import numpy as np

from sae.core.exact import (
    drop_below,
    fill_exact,
    keep_above,
    keep_top_k,
    kth_largest,
    kth_of_many,
)
from sae.core.int8_rounding import FINE, OFFSET, WIDTH, round_row, second_bound
from sae.core.int8_tile import ROWS, dot_of_bytes, tile
from sae.core.jit import compiled
from sae.core.vectors import exceeding, lowest_bit, prefetch

BLOCK_ROWS = 384
"""Rows that are screened at once: their integers stay in a core's own cache."""
# Latents whose integers stay there while those rows pass by.
_GROUP_LATENTS = 256
# Latents from whose products the k-th largest is guessed.
_SAMPLE = 512
# Entries of a row, in units of k, at which its guess at the k-th largest is raised.
_RAISE_AT = 2


@compiled
def _bounds(rows, begin, packed, first, last, upper, at):
    """Write upper bounds for six rows from `begin` on and the tiles from `first` to `last`.

    They go to the columns of `upper` from `at` on.
    """
    integers, numbers, _ = rows
    chunks = packed.starts.shape[1]
    groups = packed.tiles.shape[1] // chunks
    x, of_rows = integers.ctypes.data, numbers.ctypes.data
    tiles, starts, of_latents = (
        packed.tiles.ctypes.data, packed.starts.ctypes.data, packed.numbers.ctypes.data
    )  # fmt: skip
    out = upper.ctypes.data
    for p in range(first, last):
        tile(
            x + begin * integers.strides[0], integers.strides[0],
            tiles + p * packed.tiles.strides[0], starts + p * packed.starts.strides[0],
            chunks, groups, of_rows + begin * numbers.strides[0],
            of_latents + 4 * WIDTH * p, packed.numbers.strides[0],
            out + 4 * (at + WIDTH * (p - first)), upper.strides[0],
        )  # fmt: skip


@compiled
def _collect_open(rows, first, last, fine, facts, upper, start, n, guesses, lists):
    """Append entries that both bounds leave open, of `n` latents from `start` on.

    Of rows from `first` to `last`, six at most. The first bounds are in `upper`.
    """
    integers, numbers, sizes = rows
    columns, values, ends, seen = lists
    size = integers.shape[1]
    w = fine.ctypes.data
    for r in range(first, last):
        x, bounds = (
            integers.ctypes.data + r * size,
            upper.ctypes.data + r % ROWS * upper.strides[0],
        )
        guess, at = guesses[r], ends[r]
        end = at
        for begin in range(0, n, 64):
            bits = exceeding(bounds + 4 * begin, guess)
            if n - begin < 64:
                bits &= (np.uint64(1) << np.uint64(n - begin)) - np.uint64(1)
            while bits:
                q = begin + lowest_bit(bits)
                bits &= bits - np.uint64(1)
                columns[r, end] = start + q
                values[r, end] = upper[r % ROWS, q]
                end += 1
        seen[r] += end - at
        unit, a, b = numbers[r, 0] * np.float32(1 / FINE), numbers[r, 1], numbers[r, 2]
        for c in range(at, end):
            j = columns[r, c]
            if c + 1 < end:
                prefetch(w + columns[r, c + 1] * size, size)
            # What is added up may leave 32 bits on the way, and what is left does not.
            integer = np.int32(
                dot_of_bytes(x, w + j * size, size) - OFFSET * np.int64(facts[j, 5])
            )
            more = unit * facts[j, 0] * np.float32(integer)
            first_bound = a * facts[j, 1] + b * facts[j, 2]
            value = values[r, c] - first_bound + more + second_bound(sizes, r, facts, j)
            if not value <= guess:
                columns[r, at] = j
                values[r, at] = value
                at += 1
        ends[r] = at


@compiled
def _guess(rows, begin, last, packed, k, m, upper, guesses):
    """Guess what more than `k` of `m` entries of a few rows exceed, but not many more.

    From tiles all over the dictionary; not from the last one, which may not be whole.
    """
    n_tiles = len(packed.tiles)
    taken = min(_SAMPLE // WIDTH, n_tiles - 1)
    expected = k * taken * WIDTH / m
    place = int(expected + 4 * np.sqrt(expected)) + 2
    if place >= taken * WIDTH:
        return
    for s in range(taken):
        p = s * (n_tiles - 1) // taken
        _bounds(rows, begin, packed, p, p + 1, upper, WIDTH * s)
    for r in range(begin, last):
        a, b = rows[1][r, 1], rows[1][r, 2]
        sample = upper[r - begin, : taken * WIDTH]
        for s in range(taken):
            first = WIDTH * (s * (n_tiles - 1) // taken)
            norms, errors = packed.numbers[2, first:], packed.numbers[3, first:]
            some = sample[WIDTH * s :]
            for q in range(WIDTH):
                some[q] -= a * norms[q] + b * errors[q]
        guesses[r] = max(np.float32(0), kth_of_many(sample, place))


@compiled
def _collect(rows, begin, first, last, packed, group, m, upper, guesses, lists):
    """List the entries of rows from `first` to `last` that are left open in a group of latents.

    The rows are among the six from `begin` on, for which the product is computed.
    """
    across = _GROUP_LATENTS // WIDTH
    p = group * across
    until = min(p + across, len(packed.tiles))
    _bounds(rows, begin, packed, p, until, upper, 0)
    start = p * WIDTH
    n = min(until * WIDTH, m) - start
    _collect_open(rows, first, last, packed.fine, packed.facts, upper, start, n, guesses, lists)


@compiled
def _certain(rows, r, packed, k, lists):
    """Return what the k-th largest of a row's entries reaches for certain, at least zero."""
    columns, values, ends, _ = lists
    n = ends[r]
    if n < k:
        return np.float32(0)
    low = np.empty(n, np.float32)
    for c in range(n):
        j = columns[r, c]
        far = second_bound(rows[2], r, packed.facts, j)
        low[c] = values[r, c] - np.float32(2) * far - packed.facts[j, 4]
        if not low[c] > 0:
            low[c] = 0
    return kth_largest(low, k)


@compiled
def _raise(rows, packed, k, guesses, sure, lists, least_n):
    """Raise guesses to what `k` entries of a row reach for certain, and leave out the rest.

    Of rows with `least_n` entries at least. A guess that was raised is `sure`: nothing that it
    hid is among the k largest.
    """
    columns, values, ends, _ = lists
    for r in range(len(ends)):
        if ends[r] < least_n:
            continue
        least = _certain(rows, r, packed, k, lists)
        if least > guesses[r]:
            # Equals are still to be found.
            guesses[r] = np.nextafter(least, np.float32(-1))
            sure[r] = True
            ends[r] = drop_below(least, columns[r], values[r], ends[r])


@compiled
def _close_top_k(rows, n, packed, k, m, upper, guesses, sure, lists):
    """Leave out what is not among the `k` largest, once all latents were seen."""
    ends = lists[2]
    _raise(rows, packed, k, guesses, sure, lists, k)
    again = False
    for r in range(n):
        if guesses[r] > 0 and not sure[r]:
            # Too high a guess may have hidden something, so this row is collected once more.
            again = True
            guesses[r] = np.nextafter(_certain(rows, r, packed, k, lists), np.float32(-1))
            ends[r] = 0
            for group in range(-(-len(packed.tiles) // (_GROUP_LATENTS // WIDTH))):
                _collect(rows, r - r % ROWS, r, r + 1, packed, group, m, upper, guesses, lists)
    if again:
        _raise(rows, packed, k, guesses, sure, lists, k)


@compiled
def _open_entries(x, k, m, packed, lists):
    """List the entries of a few rows that both bounds leave open."""
    width = packed.signs.shape[1]
    padded = -(-len(x) // ROWS) * ROWS
    integers, turned = np.zeros((padded, 2 * width), np.uint8), np.empty((2, width), np.float32)
    numbers, sizes = np.zeros((padded, 3), np.float32), np.empty((len(x), 3), np.float32)
    rows = (integers, numbers, sizes)
    upper = np.empty((ROWS, max(_GROUP_LATENTS, _SAMPLE)), np.float32)
    guesses, sure = np.zeros(len(x), np.float32), np.zeros(len(x), np.bool_)
    for r in range(len(x)):
        round_row(x[r], packed, turned, integers[r], numbers[r], sizes[r])
    if k:
        for begin in range(0, len(x), ROWS):
            _guess(rows, begin, min(begin + ROWS, len(x)), packed, k, m, upper, guesses)
    n_groups = -(-len(packed.tiles) // (_GROUP_LATENTS // WIDTH))
    for group in range(n_groups):
        for begin in range(0, len(x), ROWS):
            last = min(begin + ROWS, len(x))
            _collect(rows, begin, begin, last, packed, group, m, upper, guesses, lists)
        if k:
            _raise(rows, packed, k, guesses, sure, lists, _RAISE_AT * k)
    if k:
        _close_top_k(rows, len(x), packed, k, m, upper, guesses, sure, lists)


@compiled
def screen_rows(x, weight, bias, bound, k, packed, columns, values, counts, work):
    """Choose entries of a few rows of `x @ weight.T + bias`, exactly.

    Row i gets `counts[i]` columns and values, at the front of its row of `columns` and
    `values`, which are (row, latent) and are written where they are needed only. `work` says
    how many entries of the row the first bound left open, and how many values were computed.
    """
    m, d = weight.shape
    ends, seen = np.zeros(len(x), np.int64), np.zeros(len(x), np.int64)
    _open_entries(x, k, m, packed, (columns, values, ends, seen))
    x64 = np.empty(d, np.float64)
    for r in range(len(x)):
        n = ends[r]
        work[r, 0], work[r, 1] = seen[r], n
        fill_exact(x[r], x64, weight, bias, columns[r], values[r], n)
        if k:
            counts[r] = keep_top_k(columns[r], values[r], n, k)
        else:
            counts[r] = keep_above(columns[r], values[r], n, bound)
