"""Drawing the features of a block of rows, compiled by numba: work goes by what fires.

No coin is thrown for a feature in a row where it does not fire. The next row in which it may
is a geometric jump ahead, and a child is only thought of where its parent fires.
"""
# Kernels are no Python: numba finds the types of their arguments.
# ruff: noqa: ANN001, ANN201, PLR0913, PLR0917

import math

import numpy as np

from sae.core.jit import compiled

FARTHEST = 4.0
"""Standard deviations to which hidden causes move a feature; further shifts count as this one.
A normal number is beyond in 1 of 30,000 rows, and no rate changes by a thousandth."""


@compiled
def below(z):
    """Return the share of normal numbers below z."""
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


@compiled
def grown(array):
    """Return the array in one twice as long."""
    longer = np.empty(2 * len(array), array.dtype)
    longer[: len(array)] = array
    return longer


@compiled
def fire(rng, causes, free, rates, thresholds, loadings, own):
    """Return rows and features of those without a parent that fire, feature by feature.

    Feature j fires where `loadings_j · causes_i + own_j ε > thresholds_j`, ε normal: a Gaussian
    copula of low rank. Rows are proposed at the rate of the largest shift, and kept at theirs.
    """
    n_rows, rank = causes.shape
    rows, features, n = np.empty(256, np.int32), np.empty(256, np.int32), 0
    for j in free:
        norm = math.sqrt(np.sum(loadings[j] ** 2))
        is_moved = norm > 0
        most = rates[j]
        if is_moved:
            most = below((FARTHEST * norm - thresholds[j]) / own[j])
        misses = math.log1p(-min(most, 1 - 1e-12))
        row = -1
        while True:
            row += 1 + int(math.log1p(-rng.random()) / misses)
            if row >= n_rows:
                break
            if is_moved:
                shift = 0.0
                for c in range(rank):
                    shift += loadings[j, c] * causes[row, c]
                if rng.random() * most >= below((shift - thresholds[j]) / own[j]):
                    continue
            if n == len(rows):
                rows, features = grown(rows), grown(features)
            rows[n], features[n] = row, j
            n += 1
    return rows[:n], features[:n]


@compiled
def by_row(n_rows, rows, features):
    """Return where each row ends, and the features in the order of rows."""
    ends = np.zeros(n_rows + 1, np.int64)
    for row in rows:
        ends[row + 1] += 1
    ends = np.cumsum(ends)
    found, at = np.empty_like(features), ends[:-1].copy()
    for e in range(len(rows)):
        found[at[rows[e]]] = features[e]
        at[rows[e]] += 1
    return ends, found


@compiled
def children(rng, first, count, exclusive, chances, found, n):
    """Put children of a feature behind the n that are found; returns how many they are."""
    before = n
    # Where siblings exclude each other there is one throw for all: at most one of them.
    thrown = rng.random() if exclusive else 0.0
    for child in range(first, first + count):
        if exclusive:
            thrown -= chances[child]
            if thrown < 0:
                found[n] = child
                return 1
        elif rng.random() < chances[child]:
            found[n] = child
            n += 1
    return n - before


@compiled
def descend(rng, ends, free, first, count, exclusive, chances, means, stds, scaled):
    """Return where each row ends, and features with their sizes: children behind parents.

    `free` are the features without a parent, and `chances` are those of a child in a row in
    which its parent fires.
    """
    # One row has as many features as there are, at most.
    row, above = np.empty(len(means), np.int32), np.empty(len(means), np.int64)
    size = np.empty(len(means), np.float32)
    found, sizes = np.empty(256, np.int32), np.empty(256, np.float32)
    row_ends, total = np.zeros_like(ends), 0
    for i in range(len(ends) - 1):
        n = ends[i + 1] - ends[i]
        row[:n], above[:n] = free[ends[i] : ends[i + 1]], -1
        k = 0
        while k < n:
            j = row[k]
            size[k] = abs(means[j] + stds[j] * rng.standard_normal())
            if scaled and above[k] >= 0:
                size[k] *= size[above[k]] / means[row[above[k]]]
            if count[j]:
                more = children(rng, first[j], count[j], exclusive[j], chances, row, n)
                above[n : n + more] = k
                n += more
            k += 1
        while len(found) < total + n:
            found, sizes = grown(found), grown(sizes)
        found[total : total + n], sizes[total : total + n] = row[:n], size[:n]
        total += n
        row_ends[i + 1] = total
    return row_ends, found[:total].copy(), sizes[:total].copy()


@compiled
def add_up(row_ends, features, sizes, directions, out):
    """Add to each row of `out` the directions of what fires in it, each by its size."""
    for i in range(len(row_ends) - 1):
        for e in range(row_ends[i], row_ends[i + 1]):
            size, direction = sizes[e], directions[features[e]]
            for d in range(out.shape[1]):
                out[i, d] += size * direction[d]
