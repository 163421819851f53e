"""Worlds of known features: rates, trees, correlations, sizes, and the same rows every time."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from sae.base import UserError
from sae.rows.known import KnownRows
from sae.synthetic import BLOCK_ROWS, HELD_OUT, TRAINING, WorldConfig, open_world
from sae.synthetic.structure import NONE, zipf_rates

N_BLOCKS = 40
FREE = WorldConfig(n_roots=0, rank=0, correlation=0)
CROWDED = WorldConfig(max_rate=0.3, min_rate=0.01, rank=8, correlation=0.2)
SMALL = WorldConfig(n_features=60, d_in=16, n_roots=5, branching=3, max_rate=0.3, min_rate=0.05)


def drawn(config, n=N_BLOCKS):
    world = open_world(config)
    return world, torch.cat(
        [block.codes.dense() for block in islice(world.blocks(TRAINING), n)]
    )


@pytest.mark.parametrize("config", [FREE, WorldConfig(), CROWDED], ids=["free", "mini", "full"])
def test_features_fire_at_their_rates_and_the_true_l0_is_their_sum(config):
    world, acts = drawn(config)
    fires = acts > 0
    n = len(acts)
    errors = (fires.double().mean(0).numpy() - world.rates) / np.sqrt(world.rates / n)
    # 512 normal numbers: their squares add up to 512 ± 32.
    assert abs((errors**2).sum() - 512) < 6 * 32
    assert fires.sum(1).double().mean().item() == pytest.approx(world.rates.sum(), rel=0.01)


def test_rates_fall_by_zipfs_law_between_their_ends():
    config = replace(FREE, zipf=0.7)
    rates = zipf_rates(config)
    assert rates[0] == pytest.approx(config.max_rate)
    assert rates[-1] == pytest.approx(config.min_rate)
    # Less what is added to all, they are a power law: a line of logarithms.
    share = (rates[0] - rates[-1]) / (1 - 512**-0.7)
    above = rates - (rates[0] - share)
    slope = np.polyfit(np.log(np.arange(1, 512)), np.log(above[:-1]), 1)[0]
    assert slope == pytest.approx(-0.7, abs=1e-6)


@pytest.mark.parametrize("exclusive", [0.0, 0.5, 1.0])
def test_children_fire_only_with_their_parent_and_siblings_may_exclude_each_other(exclusive):
    world, acts = drawn(replace(SMALL, exclusive=exclusive), 10)
    fires, trees = (acts > 0).numpy(), world.structure.trees
    together = 0
    for child in np.flatnonzero(trees.parent != NONE):
        assert not (fires[:, child] & ~fires[:, trees.parent[child]]).any()
    for one in np.flatnonzero(trees.n_children):
        first = trees.first_child[one]
        siblings = fires[:, first : first + trees.n_children[one]].sum(1)
        if trees.exclusive[one]:
            assert siblings.max() == 1
            # The parent fires without any of them too.
            assert (siblings[fires[:, one]] == 0).any()
        together += siblings.max() > 1
    assert (together > 0) == (exclusive < 1)


def test_hidden_causes_make_features_fire_together_as_their_loadings_say():
    config = replace(CROWDED, n_roots=0, n_features=64, rank=3, correlation=0.5, min_rate=0.15)
    world, acts = drawn(config, 60)
    loadings = torch.from_numpy(world.structure.loadings)
    wanted = (loadings @ loadings.t())[*torch.triu_indices(64, 64, 1)]
    found = torch.corrcoef((acts > 0).double().t())[*torch.triu_indices(64, 64, 1)]
    assert torch.corrcoef(torch.stack([wanted, found]))[0, 1] > 0.9


def test_sizes_have_the_means_and_deviations_of_their_features():
    world, acts = drawn(replace(FREE, n_features=20, d_in=8, max_rate=0.5, min_rate=0.2))
    for j in range(20):
        sizes = acts[:, j][acts[:, j] > 0].double()
        mean, std = world.structure.means[j], world.structure.stds[j]
        error = (std + 1e-3) / len(sizes) ** 0.5
        assert sizes.mean().item() == pytest.approx(mean, abs=5 * error)
        assert sizes.std().item() == pytest.approx(std, abs=5 * error)


def test_a_child_is_large_where_its_parent_is_if_asked_to():
    for scaled in (True, False):
        # No spread of its own: what is left to differ is the parent's size.
        config = replace(SMALL, std=1.0, std_spread=0.0, scale_children=scaled)
        world, acts = drawn(config, 20)
        child = world.structure.trees.first_child[0]
        there = acts[:, child] > 0
        sizes = torch.stack([acts[there, 0], acts[there, child]])
        assert (torch.corrcoef(sizes)[0, 1] > 0.3) == scaled


def test_rows_are_the_directions_of_what_fires_and_the_bias():
    world = open_world(WorldConfig())
    x, codes = world.block(HELD_OUT, 3)
    torch.testing.assert_close(x, codes.dense() @ world.directions + world.bias)
    torch.testing.assert_close(world.directions.norm(dim=1), torch.ones(512))
    assert world.bias.norm().item() == pytest.approx(world.config.bias)


@pytest.mark.parametrize(("n_features", "d_in"), [(300, 24), (10, 24)])
def test_tight_directions_have_the_least_sum_of_squared_cosines(n_features, d_in):
    config = replace(FREE, n_features=n_features, d_in=d_in)
    least = max(n_features, n_features**2 / d_in)
    sums = []
    for tight in (True, False):
        directions = open_world(replace(config, tight=tight)).directions.double()
        sums.append((directions @ directions.t()).square().sum().item())
    assert sums[0] == pytest.approx(least, rel=1e-3)
    assert sums[1] > 1.02 * least


def test_a_block_is_the_same_whoever_asks_and_another_for_other_numbers_streams_and_seeds():
    one, again = (open_world(SMALL).block(TRAINING, 5) for _ in range(2))
    assert torch.equal(one.x, again.x)
    assert torch.equal(one.codes.features, again.codes.features)
    others = [
        open_world(SMALL).block(TRAINING, 6),
        open_world(SMALL).block(HELD_OUT, 5),
        open_world(replace(SMALL, seed=1)).block(TRAINING, 5),
    ]
    assert not any(torch.equal(one.x, other.x) for other in others)


@pytest.mark.parametrize("batch", [256, 1000, 3000])
def test_batches_are_the_rows_of_the_world_in_order_from_any_first_one(batch):
    world = open_world(SMALL)
    source = KnownRows(world, batch)
    rows = torch.cat([block.x for block in islice(world.blocks(TRAINING), 12)])
    for first in (0, 1, 3):
        for n, (x,) in enumerate(islice(source.batches(first), 1), first):
            torch.testing.assert_close(x, rows[n * batch : (n + 1) * batch], rtol=0, atol=0)
    assert len(source.held_out(100)[0]) == 100
    assert not torch.equal(source.held_out(BLOCK_ROWS)[0], rows[:BLOCK_ROWS])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_rate": 1.5}, "world.max_rate=1.5"),
        ({"min_rate": 0.5}, "world.min_rate=0.5"),
        ({"zipf": 0.0}, "world.zipf=0"),
        ({"branching": 1}, "world.branching=1"),
        ({"exclusive": 2.0}, "world.exclusive=2"),
        ({"n_roots": 600}, "world.n_roots=600"),
        ({"correlation": 0.9}, "world.correlation=0.9"),
        ({"first_mean": -1.0}, "world.first_mean=-1"),
        ({"std": -1.0}, "world.std=-1"),
        ({"source": "theirs"}, "world.source=theirs"),
    ],
)
def test_an_impossible_world_is_refused(settings, said):
    with pytest.raises(UserError, match=said):
        WorldConfig(**settings)
