"""Controls that train beside a dictionary, and what they keep at random."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.world import harvest_settings

import sae
from sae.architectures.directions import SOFTLY, random_directions, within_cone
from sae.base import UserError
from sae.controls import CONTROLS
from sae.figures import Figures
from sae.models import ModelConfig, load_model
from sae.run import Run
from sae.training.config import SweepConfig, TrainConfig

FROZEN = ["frozen_decoder", "soft_frozen", "frozen_encoder"]
RECIPES = {
    "standard": sae.StandardConfig(d_sae=48, l1_coefficient=1.0),
    "topk": sae.TopKConfig(d_sae=48, k=6),
    "batchtopk": sae.BatchTopKConfig(d_sae=48, k=6),
    "gated": sae.GatedConfig(d_sae=48),
    "jumprelu": sae.JumpReLUConfig(d_sae=48, target_l0=6.0),
}


def config(tiny_run, run, recipe="topk", **changes):
    settings = {
        "run": str(run),
        "cache": str(tiny_run / "cache.zarr"),
        "sae": RECIPES[recipe],
        "training_tokens": 12_800,
        "train_batch_size_tokens": 128,
        "control": FROZEN,
        "sweep": SweepConfig(evaluate=False),
    }
    return TrainConfig(**settings | changes)


def loaded(run, name):
    return Run.at(run).load(name)[1]


def cosines(rows, others):
    return torch.nn.functional.cosine_similarity(rows.double(), others.double(), dim=1)


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_control_keeps_at_random_what_its_name_says(tiny_run, tmp_path, recipe):
    asked = config(tiny_run, tmp_path, recipe)
    trained = sae.train(asked)
    first = random_directions(48, torch.empty(1, 32), torch.Generator().manual_seed(asked.seed))
    found = {kind: loaded(asked.run, CONTROLS[kind].named(asked.id)) for kind in FROZEN}
    assert {kind: one.record.control for kind, one in found.items()} == {k: k for k in FROZEN}
    assert trained.record.control is None
    ones = torch.ones(48, dtype=torch.float64)
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(cosines(found["frozen_decoder"].W_dec, first), ones, **close)
    torch.testing.assert_close(cosines(found["frozen_encoder"].W_enc.t(), first), ones, **close)
    near = cosines(found["soft_frozen"].W_dec, first)
    assert near.min() > SOFTLY - 1e-5
    assert near.min() < 0.99
    assert cosines(found["frozen_decoder"].W_enc.t(), first).min() < 0.99
    assert cosines(found["frozen_encoder"].W_dec, first).min() < 0.99


def test_a_control_can_be_trained_alone_and_has_the_same_name(tiny_run, tmp_path):
    (beside,) = config(tiny_run, tmp_path, control=["soft_frozen"]).controls()
    topk = replace(RECIPES["topk"], frozen="decoder_softly")
    alone = config(tiny_run, tmp_path, control=[], sae=topk)
    assert alone.id == beside.id == "topk-48-k-6-soft-frozen"


def test_a_dictionary_is_bit_for_bit_the_same_with_its_controls(tiny_run, tmp_path):
    beside = sae.train(config(tiny_run, tmp_path / "a"))
    alone = sae.train(config(tiny_run, tmp_path / "b", control=[]))
    assert torch.equal(beside.W_dec, alone.W_dec)
    assert torch.equal(beside.W_enc, alone.W_enc)


def test_controls_are_the_same_by_seed_and_explain_less_at_the_same_l0(tiny_run, tmp_path):
    asked = config(tiny_run, tmp_path / "a", sweep=SweepConfig(n_behaviour_tokens=64))
    sae.train(asked)
    sae.train(replace(asked, run=str(tmp_path / "b")))
    names = [CONTROLS[kind].named(asked.id) for kind in FROZEN]
    for name in names:
        one, other = (loaded(tmp_path / run, name) for run in "ab")
        assert torch.equal(one.W_dec, other.W_dec)
        assert torch.equal(one.W_enc, other.W_enc)
    run = Run.at(asked.run)
    figures = {n: Figures.read(run.evaluation(n)) for n in (asked.id, *names)}
    explained = {name: one.values["explained_variance"] for name, one in figures.items()}
    assert all(explained[asked.id] > explained[name] for name in names)
    assert figures[names[0]].trained_as == "topk, frozen decoder"
    compared = json.loads(run.pareto("json").read_text())
    assert compared["recommended"] == asked.id
    assert run.controls(asked.id) == dict(zip(FROZEN, names, strict=True))


def test_a_control_of_a_transcoder_predicts_with_random_directions(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 16, generator=generator)
    rows = [(x, x[:, :12] * 2)]
    sae.train(
        run=str(tmp_path),
        name="t",
        sae=sae.TopKConfig(d_sae=24, k=4),
        training_tokens=2_560,
        train_batch_size_tokens=256,
        control=["frozen_decoder"],
        rows=rows,
    )
    generator = torch.Generator().manual_seed(42)
    random_directions(24, x, generator)
    expected = random_directions(24, x[:, :12], generator)
    found = loaded(tmp_path, "t-frozen-decoder")
    assert cosines(found.W_dec, expected).min() > 1 - 1e-5


def test_rows_outside_of_a_cone_are_moved_to_its_edge_and_keep_their_length():
    axes = random_directions(40, torch.empty(1, 8), torch.Generator().manual_seed(0)).double()
    rows = torch.randn(40, 8, generator=torch.Generator().manual_seed(1)).double()
    rows[0], rows[1] = 3 * axes[0], -2 * axes[1]
    found = within_cone(rows, axes)
    assert torch.equal(found[0], rows[0])
    torch.testing.assert_close(found.norm(dim=1), rows.norm(dim=1))
    near = cosines(found, axes)
    assert near.min() > SOFTLY - 1e-6
    moved = cosines(rows, axes) < SOFTLY
    torch.testing.assert_close(
        near[2:][moved[2:]], torch.full_like(near, SOFTLY)[2:][moved[2:]]
    )


@pytest.fixture(scope="module")
def with_random_model(tmp_path_factory, tiny_run, tiny_model, tiny_text) -> Path:
    run = tmp_path_factory.mktemp("random")
    shutil.copytree(tiny_run / "cache.zarr", run / "cache.zarr")
    about = harvest_settings(run, tiny_model, tiny_text)
    about["model"] = ModelConfig(name=str(tiny_model), random_weights=True)
    sae.harvest(**about, cache="{run}/random_model.zarr")
    return run


def test_a_control_on_a_random_model_reads_the_same_text(with_random_model, tmp_path):
    run = with_random_model
    asked = config(run, run, control=["random_model"], sweep=SweepConfig(n_behaviour_tokens=64))
    asked = replace(asked, cache="{run}/cache.zarr")
    sae.train(asked)
    name = CONTROLS["random_model"].named(asked.id)
    assert loaded(run, name).record.control == "random_model"
    figures = Figures.read(Run.at(run).evaluation(name))
    assert figures.trained_as == "topk, random model"
    assert "ce_loss_score" not in figures.values
    # All of the run are measured again, each on the cache that it is of.
    Run.at(run).evaluation(name).unlink()
    assert len(sae.eval(run=str(run), n_behaviour_tokens=64)) == 2


def test_a_random_model_has_nothing_of_the_trained_one_but_its_sizes(tiny_model):
    trained = load_model(ModelConfig(name=str(tiny_model)))
    one, other = (
        load_model(ModelConfig(name=str(tiny_model), random_weights=True)) for _ in range(2)
    )
    assert one.record.weight_digest == other.record.weight_digest
    assert one.record.weight_digest != trained.record.weight_digest
    for (name, found), (_, before) in zip(
        one.module.named_parameters(), trained.module.named_parameters(), strict=True
    ):
        if before.dim() < 2:
            assert torch.equal(found, before), name
            continue
        np.testing.assert_allclose(found.std(), before.std(), rtol=0.1)
        together = torch.stack([found.flatten(), before.flatten()])
        assert abs(torch.corrcoef(together)[0, 1]) < 5 / found.numel() ** 0.5, name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"control": ["magic"]}, "control=magic is unknown; choose from frozen_decoder"),
        ({"control": ["soft_frozen"] * 2}, "names one twice"),
        ({"sae": sae.TopKConfig(d_sae=8, k=2, frozen="decoder")}, "has no controls of its own"),
        ({"init_from": "there"}, "init_from=there gives trained directions"),
    ],
)
def test_a_control_that_makes_no_sense_is_refused(tiny_run, tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        config(tiny_run, tmp_path, **changes)


def test_what_a_recipe_cannot_keep_is_refused():
    with pytest.raises(UserError, match=r"sae\.frozen=half is unknown; choose one of none"):
        sae.TopKConfig(frozen="half")
    with pytest.raises(UserError, match=r"sae\.aligned=True moves the encoder"):
        sae.TopKConfig(aligned=True, frozen="encoder")


def test_without_the_cache_of_a_random_model_it_is_said_how_to_make_it(tiny_run, tmp_path):
    asked = config(tiny_run, tmp_path, control=["random_model"])
    with pytest.raises(
        UserError, match=r"which does not exist; make it with the same words as"
    ):
        sae.train(asked)
    assert not (tmp_path / "dictionaries").exists() or not any(
        (tmp_path / "dictionaries").glob(f"*{CONTROLS['random_model'].named('')}*")
    )


def test_rows_of_ones_own_have_no_random_model(tmp_path):
    with pytest.raises(UserError, match="rows of a model with random weights yourself"):
        sae.train(run=str(tmp_path), control=["random_model"], rows=[torch.randn(2048, 8)])


def test_a_training_from_before_controls_is_still_the_same(tiny_run, tmp_path):
    asked = config(tiny_run, tmp_path, control=[])
    sae.train(asked)
    path = asked.dictionary_path / "cfg.json"
    told = json.loads(path.read_text())
    ours = told["metadata"]["sae_atlas"]
    del ours["identity"]["sae.frozen"], ours["sae"]["frozen"]
    from support.files import unseal

    path.write_text(json.dumps(told))
    unseal(asked.dictionary_path)
    before = path.stat().st_mtime_ns
    sae.train(asked)
    assert path.stat().st_mtime_ns == before
