"""How sure figures of a reconstruction are."""

import math

import pytest
import torch

from sae.core.blocks import ROWS_IN_BLOCK, BlockStatistics
from sae.core.bootstrap import bootstrap_mean, bootstrap_ratio


def draw(n, seed, noise=0.5):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator) + 20
    return x, x + noise * torch.randn(n, 6, generator=generator)


def statistics(x, x_hat, batch):
    found = BlockStatistics(6, 4)
    for rows in zip(x.split(batch), x_hat.split(batch), strict=True):
        active = (rows[0][:, :4] > 20).int()
        found.add(*rows, active.sum(0), active.sum(1), 0.0)
    return found


def test_intervals_hold_the_figures_and_do_not_depend_on_batches():
    x, x_hat = draw(5_000, seed=0)
    found = [statistics(x, x_hat, batch).intervals() for batch in (5_000, 311, ROWS_IN_BLOCK)]
    metrics = statistics(x, x_hat, 999).metrics()
    for key, interval in found[0].items():
        assert interval.mean == pytest.approx(metrics[key], rel=1e-9)
        assert interval.low < metrics[key] < interval.high
        for other in found[1:]:
            assert other[key] == pytest.approx(interval, rel=1e-9)


def test_19_of_20_intervals_hold_the_true_explained_variance():
    held = 0
    for seed in range(60):
        interval = statistics(*draw(20 * ROWS_IN_BLOCK, seed), 4_096).intervals()
        held += (
            interval["explained_variance"].low < 1 - 0.25 < interval["explained_variance"].high
        )
    assert 51 <= held <= 60


def test_rows_that_are_all_the_same_have_no_variance_to_explain():
    x = torch.full((600, 6), 3.0)
    assert "explained_variance" not in statistics(x, x, 100).intervals()


def test_one_block_has_no_ends():
    x, x_hat = draw(100, seed=0)
    assert math.isnan(statistics(x, x_hat, 100).intervals()["mse"].low)


def test_a_ratio_over_equal_parts_is_a_mean():
    values = torch.rand(40, generator=torch.Generator().manual_seed(0))
    ratio, mean = bootstrap_ratio(values, torch.ones(40)), bootstrap_mean(values)
    assert ratio == pytest.approx(mean, rel=1e-9)
    assert math.isnan(bootstrap_ratio(values[:1], torch.ones(1)).low)
    assert math.isnan(bootstrap_ratio(values[:2], torch.tensor([1.0, 0.0])).high)
