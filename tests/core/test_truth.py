"""Latents beside true features, by hand-made cases."""

import torch

from sae.core.nulls import random_directions
from sae.core.truth import Detectors, nearest_truth, uniqueness


def test_a_latent_is_compared_with_the_true_feature_of_the_nearest_direction():
    truth = random_directions(30, 10, seed=0)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    nearest = nearest_truth(-3 * truth[order], truth)
    assert torch.equal(nearest, order)
    assert uniqueness(nearest) == 1
    assert uniqueness(nearest_truth(truth[[0, 0, 1, 1]], truth)) == 0.5


def test_detectors_count_hits_misses_and_false_alarms_over_parts():
    is_true = torch.tensor([[1, 0], [1, 0], [1, 1], [0, 1]]).bool()
    # Of feature 0: two of three hits; of feature 1: one hit, one false alarm; a dead one.
    fires = torch.tensor([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]]).bool()
    fires[0, 1] = True
    detectors = Detectors(torch.tensor([0, 1, 1]))
    for part in (slice(0, 1), slice(1, 4)):
        detectors.add(fires[part], is_true[part])
    close = torch.testing.assert_close
    close(detectors.precision, torch.tensor([1, 1 / 2, 0]).double())
    close(detectors.recall, torch.tensor([2 / 3, 1 / 2, 0]).double())
    close(detectors.f1, torch.tensor([0.8, 1 / 2, 0]).double())
