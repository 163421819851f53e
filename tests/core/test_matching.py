"""Directions of two dictionaries, matched one to one."""

import torch

from sae.core.matching import cosines, match_directions, matched
from sae.core.nulls import random_directions


def test_a_permuted_and_sign_flipped_dictionary_matches_itself_wholly():
    directions = random_directions(50, 20, seed=0)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    signs = torch.where(torch.arange(50) % 3 == 0, -1.0, 1.0)
    found = match_directions(directions, (directions * signs[:, None])[order])
    assert torch.equal(order[found.second], found.first)
    torch.testing.assert_close(found.mean, 1.0, rtol=0, atol=1e-6)


def test_signs_count_where_they_are_asked_for():
    directions = torch.eye(4)
    assert match_directions(directions, -directions, signed=True).mean < 0.5
    assert match_directions(directions, -directions).mean == 1


def test_the_smaller_set_is_matched_wholly():
    directions = random_directions(30, 16, seed=0)
    found = match_directions(directions, directions[::2])
    assert found.first.tolist() == list(range(0, 30, 2))
    assert len(match_directions(directions[::2], directions).second) == 15


def test_the_match_is_the_best_of_all_permutations():
    from itertools import permutations

    similarity = torch.rand(5, 5, generator=torch.Generator().manual_seed(3))
    best = max(sum(similarity[i, j] for i, j in enumerate(p)) for p in permutations(range(5)))
    torch.testing.assert_close(matched(similarity).cosine.sum(), best)


def test_a_row_of_zeros_is_like_nothing():
    assert not cosines(torch.zeros(1, 3), torch.eye(3)).any()
