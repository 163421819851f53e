"""Figures of what a text says again."""

import random

import pytest

from sae.steering.repetition import commonest_share, distinct_2, longest_repeat


def _longest_by_comparing_all_places(ids):
    found = 0
    for i in range(len(ids)):
        for j in range(i + 1, len(ids)):
            n = 0
            while j + n < len(ids) and ids[i + n] == ids[j + n]:
                n += 1
            found = max(found, n)
    return found


def test_distinct_pairs_are_counted_over_all_pairs():
    assert distinct_2([1, 2, 3, 4]) == 1.0
    assert distinct_2([1, 2, 1, 2]) == pytest.approx(2 / 3)
    assert distinct_2([5] * 11) == pytest.approx(1 / 10)


@pytest.mark.parametrize("ids", [[], [3]])
def test_a_text_too_short_for_a_pair_repeats_none(ids):
    assert distinct_2(ids) == 1.0
    assert longest_repeat(ids) == 0


@pytest.mark.parametrize(
    ("ids", "longest"),
    [([1, 2, 3], 0), ([1, 1], 1), ([1, 2, 3, 1, 2], 2), ([7, 7, 7], 2), ([1, 2] * 5, 8)],
)
def test_the_longest_repeat_may_overlap_itself(ids, longest):
    assert longest_repeat(ids) == longest


def test_the_longest_repeat_is_that_found_by_comparing_all_places():
    draw = random.Random(0)
    for _ in range(200):
        ids = [draw.randrange(3) for _ in range(draw.randrange(30))]
        assert longest_repeat(ids) == _longest_by_comparing_all_places(ids)


def test_the_commonest_token_has_its_share_of_all():
    assert commonest_share([1, 2, 2, 3]) == 0.5
    assert commonest_share([4]) == 1.0
    assert commonest_share([]) == 0.0
