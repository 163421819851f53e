"""The stability of features in the atlas, where the run holds another seed of the training."""

import shutil
from dataclasses import replace

import pytest
import torch

import sae
from sae.dictionary import save_dictionary

SETTINGS = {"n_contexts": 2, "dials": sae.DialConfig(n_features=0)}


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy with the dictionary `strong` alone."""
    target = tmp_path / "run"
    shutil.copytree(tiny_run, target)
    shutil.rmtree(target / "dictionaries" / "weak")
    return target


def add_seed(run, name="again", **settings):
    """A dictionary of the same training with another seed: its features in another order."""
    dictionary = sae.load(str(run / "dictionaries" / "strong"))
    order = torch.randperm(dictionary.d_sae, generator=torch.Generator().manual_seed(0))
    training = dictionary.record.training
    seeds = {"seed": training.seed + 1, "shuffle_seed": training.seed + 1}
    identity = {**training.identity, **seeds, **settings}
    other = replace(training, seed=training.seed + 1, identity=identity, digest=name)
    moved = dictionary.of_latents(order)
    save_dictionary(
        replace(moved, record=replace(moved.record, training=other)),
        run / "dictionaries" / name,
    )


def test_a_run_of_one_seed_has_no_stability_and_the_record_says_why(run, capsys):
    atlas = sae.analyze(run=str(run), dictionary="strong", **SETTINGS)
    assert {one["stability"] for one in atlas.features()} == {None}
    assert "another seed" in atlas.record.without_stability
    assert atlas.record.stability_of is None
    assert "stability of features is not known" in capsys.readouterr().err


def test_another_seed_gives_every_live_feature_a_stability_and_makes_the_atlas_anew(run):
    before = sae.analyze(run=str(run), dictionary="strong", **SETTINGS).digest
    add_seed(run, "other-recipe", **{"sae.l1_coefficient": 9.0})
    assert sae.analyze(run=str(run), dictionary="strong", **SETTINGS).digest == before
    add_seed(run)
    atlas = sae.analyze(run=str(run), dictionary="strong", **SETTINGS)
    assert atlas.digest != before
    record = atlas.record
    assert record.stability_of == "again"
    assert record.without_stability is None
    assert record.stability_mean == pytest.approx(1, abs=1e-5)
    assert 0 < record.stability_floor < 0.95
    values = [one["stability"] for one in atlas.features()]
    dead = [one["n_active"] == 0 for one in atlas.features()]
    assert all(value is None for value, gone in zip(values, dead, strict=True) if gone)
    assert {round(value, 4) for value in values if value is not None} == {1.0}
