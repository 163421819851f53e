"""Loops over the entries of one feature after the other, compiled by numba.

Entries of feature f are `ends[f]` up to `ends[f + 1]`, at ascending `tokens` (places in the
cache's flattened token array) with positive `values`. A feature belongs to one thread, so
results depend neither on the number of threads nor on how features are cut into blocks.
"""
# Kernels are no Python: numba finds the types of their arguments.
# ruff: noqa: ANN001, ANN201, ANN202, PLR0913, PLR0917

import numpy as np
from numba import njit, prange

HISTOGRAM_BINS = 50
POSITION_BINS = 10
MOST_TOKENS = 10
_TRIES = 1000
_CHUNK = 32

# Never with `fastmath`, see cpu_kernels.
_compiled = njit(parallel=True, cache=True, nogil=True)
_inner = njit(cache=True, nogil=True)


@_compiled
def place_entries(shard_ends, shard_tokens, shard_values, first_token, filled, tokens, values):
    """Copy a shard's entries of some features behind those of the shards before it.

    `filled` (feature,) says where the next entry of each feature goes, and is moved on.
    """
    for f in prange(len(filled)):
        at = filled[f]
        for e in range(shard_ends[f] - shard_ends[0], shard_ends[f + 1] - shard_ends[0]):
            tokens[at] = first_token + shard_tokens[e]
            values[at] = shard_values[e]
            at += 1
        filled[f] = at


@_compiled
def moments(ends, values, found, histogram):
    """Of each feature the sum, the sum of squares, the highest, and the spread.

    `found` (feature, 4) is float64; the spread is the standard deviation over the entries.
    `histogram` (feature, bin) counts values in equal bins of (0, highest]; a bin holds its
    upper edge.
    """
    bins = histogram.shape[1]
    for f in prange(len(ends) - 1):
        start, end = ends[f], ends[f + 1]
        total, squares, highest = 0.0, 0.0, 0.0
        for e in range(start, end):
            value = np.float64(values[e])
            total += value
            squares += value * value
            highest = max(highest, value)
        spread, mean = 0.0, total / max(1, end - start)
        for e in range(start, end):
            value = np.float64(values[e])
            spread += (value - mean) ** 2
            histogram[f, _bin(value, highest, bins)] += 1
        found[f, 0], found[f, 1], found[f, 2] = total, squares, highest
        found[f, 3] = np.sqrt(spread / max(1, end - start))


@_inner
def _bin(value, highest, bins):
    """Of `bins` equal parts of (0, highest] the one that holds `value`; upper edges belong."""
    return min(bins - 1, max(0, int(np.ceil(value * bins / highest)) - 1))


@_compiled
def occurrences(ends, tokens, names, sizes, best, counts, distinct):
    """How often the name of an entry's token comes up: a token id, or a document.

    `names` are those of all tokens, `sizes` the numbers of names and of threads. `best` and
    `counts` (feature, n) are the names that come up most, ties to the lower, and how often
    (−1 where fewer); `distinct` (feature,) is how many come up at all.
    """
    n_names, n_threads = sizes
    for thread in prange(n_threads):
        seen = np.zeros(n_names, np.int64)
        touched = np.empty(n_names, np.int64)
        for f in range(thread, len(ends) - 1, n_threads):
            n = 0
            for e in range(ends[f], ends[f + 1]):
                name = names[tokens[e]]
                if seen[name] == 0:
                    touched[n] = name
                    n += 1
                seen[name] += 1
            distinct[f] = n
            for i in range(n):
                _insert_count(best[f], counts[f], touched[i], seen[touched[i]])
                seen[touched[i]] = 0


@_inner
def _insert_count(names, counts, name, count):
    at = len(names)
    while at > 0 and (
        count > counts[at - 1] or (count == counts[at - 1] and name < names[at - 1])
    ):
        at -= 1
    for i in range(len(names) - 1, at, -1):
        names[i], counts[i] = names[i - 1], counts[i - 1]
    if at < len(names):
        names[at], counts[at] = name, count


@_compiled
def position_counts(ends, tokens, context_size, found):
    """Entries in equal parts of the context window, `found` (feature, part)."""
    parts = found.shape[1]
    for f in prange(len(ends) - 1):
        for e in range(ends[f], ends[f + 1]):
            found[f, tokens[e] % context_size * parts // context_size] += 1


@_inner
def _uniform(seed, feature, token):
    """A number in [0, 1) that depends on these three alone (splitmix64 of each in turn)."""
    state = np.uint64(seed)
    for part in (feature, token):
        state += np.uint64(part) * np.uint64(0xD1342543DE82EF95)
        state += np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return np.float64(state >> np.uint64(11)) / np.float64(1 << 53)


@_inner
def _insert(keys, places, key, place):
    """Into descending keys; of equal ones the earlier stays before."""
    at = len(keys) - 1
    while at > 0 and key > keys[at - 1]:
        keys[at], places[at] = keys[at - 1], places[at - 1]
        at -= 1
    keys[at], places[at] = key, place


@_inner
def _insert_one_a_sequence(keys, places, sequences, key, place, sequence):
    """Insert a key that beats the last; of each sequence only the highest key stays."""
    last = len(keys) - 1
    for i in range(last + 1):
        if sequences[i] == sequence:
            if key <= keys[i]:
                return
            for j in range(i, last):
                keys[j], places[j] = keys[j + 1], places[j + 1]
                sequences[j] = sequences[j + 1]
            break
    at = last
    while at > 0 and key > keys[at - 1]:
        keys[at], places[at] = keys[at - 1], places[at - 1]
        sequences[at] = sequences[at - 1]
        at -= 1
    keys[at], places[at], sequences[at] = key, place, sequence


@_inner
def _is_peak(tokens, values, e, radius, context_size):
    """Whether an entry is the highest of its own stretch; of equals the first is."""
    token, value = tokens[e], values[e]
    first = max(token - radius, token // context_size * context_size)
    last = min(token + radius, token // context_size * context_size + context_size - 1)
    i = e - 1
    while i >= 0 and tokens[i] >= first:
        if values[i] >= value:
            return False
        i -= 1
    i = e + 1
    while i < len(tokens) and tokens[i] <= last:
        if values[i] > value:
            return False
        i += 1
    return True


@_compiled
def top_entries(ends, tokens, values, context_size, chosen):
    """The highest entries, one a sequence: `chosen` (feature, n) tokens, −1 where fewer.

    Descending; ties fall to the earlier sequence, and in a sequence to the earlier token.
    """
    n = chosen.shape[1]
    for f in prange(len(ends) - 1):
        keys = np.full(n, -1.0)
        sequences = np.full(n, -1)
        for e in range(ends[f], ends[f + 1]):
            if values[e] > keys[n - 1]:
                token = tokens[e]
                _insert_one_a_sequence(
                    keys, chosen[f], sequences, values[e], token, token // context_size
                )


@_compiled
def band_entries(ends, tokens, values, highest, settings, first_feature, chosen):
    """Peaks drawn from equal parts of (0, highest], one a sequence.

    `settings` are the context size, the radius of a peak's stretch and the seed. `chosen`
    (feature, band, n) are tokens, lowest band first, by falling value; −1 where fewer.
    """
    context_size, radius, seed = settings
    _, bands, n = chosen.shape
    for f in prange(len(ends) - 1):
        mine, heights = tokens[ends[f] : ends[f + 1]], values[ends[f] : ends[f + 1]]
        keys = np.full((bands, n), -1.0)
        places = np.full((bands, n), -1)
        sequences = np.full((bands, n), -1)
        for e in range(len(mine)):
            band = _bin(heights[e], highest[f], bands)
            key = _uniform(seed, first_feature + f, mine[e])
            if key > keys[band, n - 1] and _is_peak(mine, heights, e, radius, context_size):
                sequence = mine[e] // context_size
                _insert_one_a_sequence(
                    keys[band], places[band], sequences[band], key, e, sequence
                )
        for band in range(bands):
            keys[band] = -1.0
            for place in np.sort(places[band]):
                if place >= 0:
                    _insert(keys[band], chosen[f, band], heights[place], mine[place])


@_compiled
def silent_tokens(ends, tokens, is_text, settings, first_feature, chosen):
    """Text tokens in whose whole stretch the feature has no entry, drawn uniformly.

    `is_text` (token,) is negative where there is no text. `chosen` (feature, n) are different
    tokens; −1 where fewer were found.
    """
    context_size, radius, seed = settings
    n = chosen.shape[1]
    for f in prange(len(ends) - 1):
        mine = tokens[ends[f] : ends[f + 1]]
        found = 0
        for attempt in range(_TRIES):
            if found == n:
                break
            # The complement, so that these draws are not those of the bands.
            drawn = _uniform(~seed, first_feature + f, attempt)
            token = int(drawn * len(is_text))
            first = max(token - radius, token // context_size * context_size)
            last = min(token + radius, token // context_size * context_size + context_size - 1)
            at = np.searchsorted(mine, first)
            fires = at < len(mine) and mine[at] <= last
            if is_text[token] >= 0 and not fires and not np.any(chosen[f, :found] == token):
                chosen[f, found] = token
                found += 1


@_compiled
def stretches(ends, tokens, values, context_size, chosen, found):
    """The activations around chosen tokens: `found` (feature, slot, 2 radius + 1), zeroed.

    The first is that of the stretch's first token, which is a sequence's first one at least.
    """
    _, slots, width = found.shape
    radius = width // 2
    for f in prange(len(ends) - 1):
        mine, heights = tokens[ends[f] : ends[f + 1]], values[ends[f] : ends[f + 1]]
        for slot in range(slots):
            token = chosen[f, slot]
            if token >= 0:
                sequence_start = token // context_size * context_size
                first = max(token - radius, sequence_start)
                last = min(token + radius, sequence_start + context_size - 1)
                e = np.searchsorted(mine, first)
                while e < len(mine) and mine[e] <= last:
                    found[f, slot, mine[e] - first] = heights[e]
                    e += 1


@_compiled
def extremes(rows, high, high_places, low, low_places):
    """The highest and the lowest entries of dense rows, (row, n) each, best first.

    Most pieces of a row hold none, as is seen in one go. Ties fall to the lower place.
    """
    k, width = high.shape[1], rows.shape[1]
    for r in prange(len(rows)):
        row = rows[r]
        high[r] = low[r] = -np.inf
        # The lowest are held with their signs changed until the end.
        for start in range(0, width, _CHUNK):
            most, least = high[r, k - 1], -low[r, k - 1]
            hit = start + _CHUNK > width
            if not hit:
                for j in range(start, start + _CHUNK):
                    hit |= (row[j] > most) | (row[j] < least)
            if hit:
                for j in range(start, min(width, start + _CHUNK)):
                    if row[j] > high[r, k - 1]:
                        _insert(high[r], high_places[r], row[j], j)
                    if -row[j] > low[r, k - 1]:
                        _insert(low[r], low_places[r], -row[j], j)
        low[r] = -low[r]


@_compiled
def coactivate(
    ends, tokens, values, first_token, row_ends, columns, row_values, counts, products
):
    """Add what some tokens say of some features: `counts` and `products` (feature, d_sae).

    This is Gustavson's way with sparse products: the row of each entry's token is added into
    dense rows that stay in the processor's cache. Only pairs that fire together are touched.
    `row_ends`, `columns` and `row_values` are the entries of all features at each token from
    `first_token` on; others are left out. Columns are uint32: numba asks of every signed index
    whether it counts from the end.
    """
    end_token = first_token + len(row_ends) - 1
    for f in prange(len(ends) - 1):
        start, end = ends[f], ends[f + 1]
        start += np.searchsorted(tokens[start:end], first_token)
        together, sums = counts[f], products[f]
        for e in range(start, end):
            if tokens[e] >= end_token:
                break
            value = np.float64(values[e])
            row = tokens[e] - first_token
            others = columns[row_ends[row] : row_ends[row + 1]]
            heights = row_values[row_ends[row] : row_ends[row + 1]]
            for i in range(len(others)):
                together[others[i]] += 1
                sums[others[i]] += value * heights[i]


@_compiled
def strongest_pairs(
    first_feature, n_rows, fired, sums, squares, counts, products,
    correlated, correlations, coactive, overlaps
):  # fmt: skip
    """The partners of each feature of a block with the highest Pearson r, and Jaccard.

    Pearson over all `n_rows` rows, those where neither fires included; only r > 0, and only
    pairs that fire together. Ties fall to the lower feature. Features, (feature, n), come
    filled with −1, and their correlations and overlaps with 0.
    """
    spreads = np.sqrt(np.maximum(0.0, squares - sums * sums / n_rows))
    n = correlated.shape[1]
    for f in prange(len(counts)):
        own = first_feature + f
        for other in range(len(fired)):
            together = counts[f, other]
            if together == 0 or other == own:
                continue
            overlap = together / (fired[own] + fired[other] - together)
            if overlap > overlaps[f, n - 1]:
                _insert(overlaps[f], coactive[f], overlap, other)
            covariance = products[f, other] - sums[own] * sums[other] / n_rows
            spread = spreads[own] * spreads[other]
            if covariance > correlations[f, n - 1] * spread and spread > 0:
                r = covariance / spread
                if r > correlations[f, n - 1]:
                    _insert(correlations[f], correlated[f], r, other)
