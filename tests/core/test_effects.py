"""What a change does to next-token probabilities, beside chance, with intervals."""

import math

import pytest
import torch

from sae.core.bootstrap import bootstrap_mean, bootstrap_means
from sae.core.effects import (
    confidence,
    cross_entropy,
    kl_divergence,
    log_mass,
    output_score,
    scores_of_many,
)
from sae.core.nulls import random_directions, rank_p, z_score


def log_probs(*shape, seed=0):
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()
    return (3 * drawn).log_softmax(-1)


def test_the_output_score_is_probability_times_rank_of_the_best_own_token():
    given = torch.tensor([0.5, 0.3, 0.15, 0.05]).double().log()
    assert float(output_score(given, torch.tensor([1, 3]))) == pytest.approx(0.3 * (1 - 1 / 4))
    assert float(output_score(given, torch.tensor([0]))) == pytest.approx(0.5)


def test_a_certain_own_token_scores_one_and_an_impossible_one_zero():
    certain = torch.full((6,), -math.inf)
    certain[2] = 0.0
    assert float(output_score(certain, torch.tensor([2, 4]))) == 1
    assert float(output_score(certain, torch.tensor([4, 5]))) == 0


def test_scores_of_many_features_at_once_are_those_of_each():
    given, own = log_probs(5, 40), torch.randint(40, (7, 3))
    given[:, 3] = given[:, 8]  # equal ones
    scores, masses = scores_of_many(given, own)
    for i, ids in enumerate(own):
        torch.testing.assert_close(scores[:, i], output_score(given, ids))
        torch.testing.assert_close(masses[:, i], log_mass(given, ids))


def test_own_tokens_may_differ_from_row_to_row():
    given, own = log_probs(4, 5, 40), torch.randint(40, (4, 3))
    found = output_score(given, own[:, None])
    for i in range(4):
        torch.testing.assert_close(found[i], output_score(given[i], own[i]))


def test_kl_is_what_a_calibrated_model_is_expected_to_lose_in_cross_entropy():
    before, after = log_probs(3, 9, seed=1), log_probs(3, 9, seed=2)
    following = torch.arange(9).expand(3, 9)
    rises = cross_entropy(after[:, None].expand(3, 9, 9), following) - cross_entropy(
        before[:, None].expand(3, 9, 9), following
    )
    expected = (before.exp() * rises).sum(1)
    torch.testing.assert_close(kl_divergence(before, after), expected)
    assert torch.equal(kl_divergence(before, before), torch.zeros(3).double())
    torch.testing.assert_close(confidence(before), before.exp().amax(1))


def test_a_figure_drawn_like_its_nulls_is_beyond_them_as_often_as_its_p_says():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4000, generator=generator)
    nulls = torch.randn(32, 4000, generator=generator)
    p = rank_p(values, nulls)
    assert float(p.min()) == pytest.approx(1 / 33)
    assert float((p <= 1 / 33).double().mean()) == pytest.approx(1 / 33, abs=0.01)
    assert float(z_score(values, nulls).mean()) == pytest.approx(0, abs=0.1)
    for equal in (torch.ones(5, 1), torch.full((32, 1), 0.1234567)):
        assert math.isnan(float(z_score(torch.ones(1), equal)[0]))


def test_random_directions_have_norm_one_and_favour_no_direction():
    drawn = random_directions(4000, 8, seed=3)
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(4000))
    assert float((drawn.mean(0)).abs().max()) < 4 / math.sqrt(8 * 4000)
    assert torch.equal(drawn, random_directions(4000, 8, seed=3))


@pytest.mark.parametrize(
    ("rows", "columns"), [(12, 1), (3, 1), (2, 1), (10, 8), (4, 8), (3, 6), (2, 6)]
)
def test_intervals_cover_a_planted_effect_at_least_ninety_five_times_in_a_hundred(
    rows, columns
):
    """Features differ, prompts differ, and so does each pair: an effect of 0.7 is planted."""
    generator = torch.Generator().manual_seed(1)
    covered = 0
    for seed in range(300):
        of_rows, of_columns, of_both = (
            torch.randn(size, generator=generator)
            for size in ((rows, 1), (1, columns), (rows, columns))
        )
        shared = of_columns if columns > 1 else 0
        low, high = bootstrap_mean(0.7 + of_rows + 0.3 * shared + of_both, seed)[1:]
        covered += low <= 0.7 <= high
    # Three standard errors of 300 trials around 0.95, and no more than all.
    assert covered / 300 >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 300)


def test_a_table_of_one_row_is_as_sure_as_its_columns_alone():
    values = torch.randn(9, generator=torch.Generator().manual_seed(0))
    assert bootstrap_mean(values[None]) == bootstrap_mean(values)
    # What is no number is left out with its row.
    holed = torch.stack([values, values + 1, torch.full((9,), math.nan)])
    assert bootstrap_mean(holed) == bootstrap_mean(holed[:2])


@pytest.mark.parametrize("n", [2, 4, 9])
def test_intervals_of_many_figures_are_those_of_each_alone(n):
    table = torch.randn(n, 5, generator=torch.Generator().manual_seed(0))
    together = torch.stack(bootstrap_means(table), 1)
    alone = torch.tensor([bootstrap_mean(table[:, i]) for i in range(5)]).double()
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)
    assert all(ends.isnan().all() for ends in bootstrap_means(table[:1])[1:])


def test_an_interval_shrinks_with_more_prompts_and_needs_two():
    wide, narrow = (
        bootstrap_mean(torch.randn(n, generator=torch.Generator().manual_seed(0)))
        for n in (10, 1000)
    )
    assert narrow.high - narrow.low < (wide.high - wide.low) / 4
    alone = bootstrap_mean(torch.tensor([2.0]))
    assert alone.mean == 2.0
    assert alone.to_json() == {"mean": 2.0, "low": None, "high": None}


def test_choosing_and_reporting_on_the_same_half_is_inflated_on_pure_noise():
    """Of nine doses that do nothing one is chosen on a half; only the other half is honest."""
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(500, 2, 9, 8, generator=generator).mean(-1)
    best = noise[:, 0].argmax(1)
    same, other = (noise[torch.arange(500), half, best] for half in (0, 1))
    assert bootstrap_mean(same).low > 0.3
    assert bootstrap_mean(other).low < 0 < bootstrap_mean(other).high
