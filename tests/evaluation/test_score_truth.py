"""Figures beside the truth: of the truth itself, of chance, and SAELens's of the same."""

from dataclasses import replace

import pytest
import torch

from sae.core.nulls import random_directions
from sae.dictionary import Dictionary, JumpReLU, TopK, save_dictionary
from sae.evaluation.recipes import Scored, as_lines, over_seeds
from sae.evaluation.truth import score_truth
from sae.findings import shown
from sae.synthetic import WorldConfig, open_world

# As many features as dimensions, at right angles: the true codes can be read off exactly.
CLEAR = WorldConfig(
    n_features=48, d_in=48, n_roots=4, max_rate=0.3, min_rate=0.05, std_spread=0.0
)
CROWDED = replace(CLEAR, d_in=24)


def dictionary_of(directions, bias, activation):
    return Dictionary.from_weights(
        directions.t(), -(directions @ bias), directions, bias, activation
    )


def values(findings):
    return {one.key: one.value for one in findings}


def test_the_truth_scores_one_in_any_order_and_of_either_sign():
    world = open_world(CLEAR)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    threshold = JumpReLU(torch.full((48,), 0.01))
    dictionary = dictionary_of(world.directions[order], world.bias, threshold)
    found = values(score_truth(dictionary, world, 4096))
    for key in ("f1", "precision", "recall", "mcc", "f1_features", "recovered", "uniqueness"):
        assert found[f"truth_{key}"] == pytest.approx(1, abs=1e-5), key
    assert found["explained_variance"] == pytest.approx(1, abs=1e-5)
    assert found["l2_ratio"] == pytest.approx(1, abs=1e-4)
    assert found["l0"] == found["truth_l0"]
    turned = dictionary.with_weights({"W_dec": -dictionary.W_dec})
    assert values(score_truth(turned, world, 1024))["truth_mcc"] == pytest.approx(1, abs=1e-5)


def test_random_directions_score_their_own_floor_and_the_truth_is_past_it():
    world = open_world(CROWDED)
    chance = dictionary_of(random_directions(48, 24, seed=7), world.bias, TopK(k=5))
    for one in score_truth(chance, world, 8192):
        if one.floor is not None:
            assert one.value == pytest.approx(one.floor, abs=0.12), one.key
    truth = dictionary_of(world.directions, world.bias, TopK(k=5))
    findings = score_truth(truth, world, 8192)
    for key in ("truth_f1", "truth_mcc", "truth_f1_features", "truth_recovered"):
        assert shown(findings, key).beats_floor, key


def test_a_narrow_dictionary_is_scored_over_its_latents_and_over_all_features():
    world = open_world(CLEAR)
    half = dictionary_of(world.directions[:24], world.bias, JumpReLU(torch.full((24,), 0.01)))
    found = values(score_truth(half, world, 4096))
    assert found["truth_f1"] == pytest.approx(1, abs=1e-5)
    assert found["truth_f1_features"] == pytest.approx(0.5, abs=1e-5)
    assert found["truth_recovered"] == 0.5


def test_saelens_finds_the_same_figures_of_the_same_rows(tmp_path):
    pytest.importorskip("sae_lens")
    from sae_lens import SAE
    from sae_lens.synthetic import FeatureDictionary, eval_sae_on_synthetic_data

    world = open_world(CROWDED)
    noise = random_directions(40, 24, seed=3)
    directions = torch.nn.functional.normalize(world.directions[:40] + 0.7 * noise, dim=1)
    # Not a TopK: where nothing fires, rounding alone would decide which are the largest.
    threshold = JumpReLU(torch.linspace(1, 3, 40))
    dictionary = dictionary_of(directions, world.bias, threshold).placed("synthetic")
    save_dictionary(dictionary, tmp_path / "sae")
    theirs = SAE.load_from_disk(str(tmp_path / "sae"))
    features = FeatureDictionary(48, 24, bias=0.5, initializer=None)
    features.feature_vectors.data = world.directions
    features.bias.data = world.bias
    codes = world.block(1, 0).codes.dense()

    class Generator:
        def sample(self, n):
            return codes[:n]

    found = eval_sae_on_synthetic_data(theirs, features, Generator(), num_samples=len(codes))
    ours = values(score_truth(dictionary, world, len(codes)))
    wanted = {
        "truth_f1": found.classification.f1_score,
        "truth_precision": found.classification.precision,
        "truth_recall": found.classification.recall,
        "truth_mcc": found.mcc,
        "truth_uniqueness": found.uniqueness,
        "truth_l0": found.true_l0,
        "l0": found.sae_l0,
        "explained_variance": found.explained_variance,
        "l2_ratio": found.shrinkage,
        "dead_fraction": found.dead_latents / 40,
    }
    for key, value in wanted.items():
        assert ours[key] == pytest.approx(value, abs=1e-5), key


def test_a_world_of_saelens_has_the_same_form_and_the_same_rows_every_time():
    pytest.importorskip("sae_lens")
    config = replace(CROWDED, source="saelens")
    before = torch.random.get_rng_state()
    world = open_world(config)
    one, again = (world.block(0, 2) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one.x, again.x)
    torch.testing.assert_close(one.x, one.codes.dense() @ world.directions + world.bias)
    assert not torch.equal(one.x, world.block(0, 3).x)
    dense = one.codes.dense() > 0
    # Its children fire with their parents too: feature 4 is the first child of feature 0.
    assert not (dense[:, 4] & ~dense[:, 0]).any()


def test_recipes_are_compared_by_means_over_seeds_with_intervals():
    world = open_world(CROWDED)

    def scored(recipe, seed):
        dictionary = dictionary_of(random_directions(48, 24, seed=seed), world.bias, TopK(k=5))
        findings = score_truth(dictionary, world, 1024)
        about = {"id": f"{recipe}-{seed}", "recipe": recipe, "seed": seed, "digest": "x"}
        return Scored(**about, world={}, findings=findings)

    one, two, three = scored("a", 1), scored("a", 2), scored("b", 1)
    found = over_seeds([one, two, three])
    mean = shown(found["a"], "truth_f1")
    each = [shown(scored.findings, "truth_f1").value for scored in (one, two)]
    assert mean.value == pytest.approx(sum(each) / 2)
    assert mean.low < min(each) < max(each) < mean.high
    assert (mean.n, mean.unit) == (2, "seeds")
    assert found["b"] == list(three.findings)
    lines = as_lines(found)
    assert lines[1].startswith("a ")
    assert "±" in lines[1]
    assert lines[-1].startswith("(random directions)")


def test_what_was_scored_is_read_back_from_its_file(tmp_path):
    world = open_world(CROWDED)
    dictionary = dictionary_of(world.directions, world.bias, TopK(k=5))
    findings = score_truth(dictionary, world, 1024)
    about = {"id": "a-1", "recipe": "a", "seed": 1, "digest": "x", "world": {"d_in": 24}}
    scored = Scored(**about, findings=findings)
    scored.write(tmp_path / "a-1.json")
    assert Scored.read(tmp_path / "a-1.json") == scored
