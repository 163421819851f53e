"""The map of features: near directions lie near each other, always at the same places."""

import numpy as np
import pytest
import torch

from sae.analysis.map import feature_map


def directions(n_groups, each, d=16, spread=0.3, seed=0):
    """Rows around some random directions, and the group of each."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(n_groups, d, generator=draw)
    group = torch.arange(n_groups).repeat_interleave(each)
    noise = torch.randn(n_groups * each, d, generator=draw)
    scale = torch.rand(n_groups * each, 1, generator=draw) + 0.1
    return scale * (centres[group] + spread * noise), group


def neighbours(rows, k=10):
    unit = torch.nn.functional.normalize(rows, dim=1)
    cosines = (unit @ unit.t()).fill_diagonal_(-2)
    best = cosines.topk(min(k, len(rows) - 1), dim=1)
    return best.indices, best.values


def placed(rows):
    return feature_map(rows, *neighbours(rows))


def preserved(rows, places, k=10):
    """Share of the `k` nearest on the map that are among the `3k` nearest directions."""
    found = torch.cdist(places, places).fill_diagonal_(9).topk(k, largest=False).indices
    true, _ = neighbours(rows, 3 * k)
    return (found[:, :, None] == true[:, None, :]).any(2).double().mean().item()


@pytest.fixture(scope="module")
def grouped():
    rows, group = directions(12, 25)
    return rows, group, placed(rows)


def test_features_that_are_near_on_the_map_have_near_directions(grouped):
    rows, group, places = grouped
    at_random = torch.rand(len(rows), 2, generator=torch.Generator().manual_seed(0))
    assert preserved(rows, at_random) < 0.2
    assert preserved(rows, places) > 0.9
    nearest = torch.cdist(places, places).fill_diagonal_(9).argmin(1)
    assert (group[nearest] == group).double().mean() > 0.97


def test_the_map_fills_the_unit_square_and_is_bit_equal_when_made_again(grouped):
    rows, _, places = grouped
    assert places.shape == (300, 2)
    assert places.dtype == torch.float32
    assert places.min(0).values.tolist() == [0, 0]
    assert places.max(0).values.tolist() == [1, 1]
    assert torch.equal(placed(rows.clone()), places)


def test_the_size_of_a_decoder_row_does_not_matter_for_its_place(grouped):
    rows, _, places = grouped
    assert torch.equal(placed(4 * rows), places)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 19])
def test_few_features_are_placed_by_their_principal_components(n):
    rows, _ = directions(n, 1)
    rows = rows.reshape(n, 16)
    nothing = torch.zeros(n, 0, dtype=torch.int64), torch.zeros(n, 0)
    places = feature_map(rows, *(neighbours(rows) if n > 1 else nothing))
    assert places.shape == (n, 2)
    assert ((places >= 0) & (places <= 1)).all()
    if n == 2:
        assert sorted(places[:, 0].tolist()) == [0, 1]
    if n > 2:
        centred = torch.nn.functional.normalize(rows, dim=1)
        centred = (centred - centred.mean(0)).double()
        u, s, _ = torch.linalg.svd(centred, full_matrices=False)
        for axis in range(2):
            r = np.corrcoef((u * s)[:, axis].numpy(), places[:, axis].numpy())[0, 1]
            assert abs(r) > 0.99


@pytest.mark.parametrize(
    "rows",
    [
        torch.zeros(30, 8),
        torch.ones(30, 8),
        torch.randn(40, 1, generator=torch.Generator().manual_seed(0)),
        torch.cat([torch.zeros(25, 8), directions(1, 30, 8)[0]]),
        torch.cat([torch.ones(25, 8), directions(1, 30, 8)[0]]),
        torch.eye(24),
        directions(1, 24, 24)[0].bfloat16(),
    ],
    ids=[
        "zeros",
        "all equal",
        "one dimension",
        "zeros among",
        "equal among",
        "axes",
        "bfloat16",
    ],
)
def test_rows_that_are_equal_zero_or_narrow_have_places_too(rows):
    places = (
        placed(rows.float())
        if rows.dtype != torch.bfloat16
        else feature_map(rows, *neighbours(rows.float()))
    )
    assert places.shape == (len(rows), 2)
    assert ((places >= 0) & (places <= 1)).all()


def test_one_outlier_does_not_press_the_others_together():
    from sae.analysis.map import _scaled

    places = np.random.default_rng(0).normal(size=(5000, 2)).astype(np.float32)
    places[7] = 1000
    scaled = _scaled(places)
    assert np.delete(scaled, 7, axis=0).std(axis=0).min() > 0.1
    assert scaled[7].tolist() == [1, 1]
