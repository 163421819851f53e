"""How much of a text is said again, in figures of its token ids alone."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise


def distinct_2(ids: Sequence[int]) -> float:
    """Return the share of pairs of neighbouring tokens that are different, in (0, 1].

    That is distinct-2 of Li et al. 2016, "A Diversity-Promoting Objective Function for Neural
    Conversation Models", over pairs instead of tokens: different pairs over all pairs. 1 where
    no pair comes twice, so also for fewer than two tokens, which have no pair.
    """
    pairs = [*pairwise(ids)]
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def longest_repeat(ids: Sequence[int]) -> int:
    """Return how many tokens the longest stretch has that occurs twice, which may overlap.

    `a b c a b` repeats `a b`, so 2; `a a a` repeats `a a`, so 2; 0 where all tokens differ.
    """
    # Where a stretch occurs twice so does each shorter one that it begins with.
    most_known, least_not = 0, max(1, len(ids))
    while least_not - most_known > 1:
        length = (most_known + least_not) // 2
        if _occurs_twice(ids, length):
            most_known = length
        else:
            least_not = length
    return most_known


def commonest_share(ids: Sequence[int]) -> float:
    """Return the share of the commonest token among all, in (0, 1]; 0 where there is none."""
    return max(Counter(ids).values(), default=0) / max(1, len(ids))


def _occurs_twice(ids: Sequence[int], length: int) -> bool:
    """Return whether any stretch of `length` tokens occurs twice."""
    n = len(ids) - length + 1
    return len({tuple(ids[i : i + length]) for i in range(n)}) < n
