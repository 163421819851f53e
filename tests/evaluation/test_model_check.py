"""Which model a dictionary is of: told by digests, and measured on a probe text."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.world import HOOK, random_dictionary

import sae
from sae.base.errors import UserError
from sae.evaluation.model_check import PROBE, check_model
from sae.models import ModelConfig, ModelRecord, load_model
from sae.models.packaged import EMBEDDED
from sae.publishing.card.loading import input_section


@pytest.fixture(scope="module")
def original(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(tiny_model, tmp_path_factory.mktemp("check") / "original")


@pytest.fixture(scope="module")
def rounded(original: Path) -> Path:
    """The model with its weights rounded to sixteen levels a tensor."""
    folder = shutil.copytree(original, original.parent / "rounded")
    module = load_model(ModelConfig(name=str(original))).module
    for weights in module.parameters():
        step = weights.abs().max() / 8
        weights.copy_((weights / step).round() * step)
    module.save_pretrained(folder)
    return folder


@pytest.fixture
def dictionary(original: Path):
    made = random_dictionary("topk", hook_name=HOOK)
    record = load_model(ModelConfig(name=str(original))).record
    named = replace(made.record, model=record, model_name="tiny", max_norm_multiple=None)
    return replace(made, record=named)


def seen(folder: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What transformers itself gives behind block 1 for the tokens of the probe text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(PROBE, add_special_tokens=False)["input_ids"]
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.no_grad():
        states = module(torch.tensor([[0, *ids]]), output_hidden_states=True).hidden_states
    return states[2][0, 1:].double()


def variance(dictionary, x: torch.Tensor) -> float:
    left = (x - dictionary(x.float()).double()).square().sum()
    return float(1 - left / (x - x.mean(0)).square().sum())


def test_the_very_model_is_told_by_its_digest_and_differs_by_nothing(dictionary, original):
    found = sae.check_model(dictionary, str(original))
    assert found.same_weights is True
    assert found.difference == found.floor == 0.0
    assert found.explained_variance == found.explained_variance_recorded
    assert "the weights are the recorded ones" in str(found)


def test_other_weights_of_the_same_name_are_told_and_measured(dictionary, original, rounded):
    found = check_model(dictionary, ModelConfig(name=str(rounded)))
    x, x0 = seen(rounded), seen(original)
    assert found.same_weights is False
    assert found.n_tokens == len(x)
    assert found.difference == pytest.approx(float((x - x0).norm() / x0.norm()), rel=1e-5)
    assert found.difference > 0.01
    assert found.floor == 0.0
    assert found.explained_variance == pytest.approx(variance(dictionary, x), abs=1e-5)
    assert found.explained_variance_recorded == pytest.approx(
        variance(dictionary, x0), abs=1e-5
    )
    assert found.l0 == found.l0_recorded == 7
    said = str(found)
    assert "the weights are others than the recorded ones" in said
    assert f"the activations differ by {found.difference:.3%} of their norm; 0.000% is" in said


def test_a_loaded_module_in_another_precision_is_at_the_floor_of_that(dictionary, original):
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(original, dtype=torch.bfloat16)
    found = check_model(dictionary, module)
    x, x0 = seen(original, torch.bfloat16), seen(original)
    assert found.found.dtype == "bfloat16"
    assert "others than the recorded ones, or only in another precision" in str(found)
    assert found.difference == found.floor > 0
    assert found.floor == pytest.approx(float((x - x0).norm() / x0.norm()), rel=1e-3)


def test_where_the_recorded_model_is_gone_the_dictionary_is_measured_alone(dictionary, rounded):
    gone = replace(dictionary.record.model, name="/nowhere/tiny")
    record = replace(dictionary.record, model=gone)
    found = check_model(replace(dictionary, record=record), str(rounded))
    assert found.same_weights is False
    assert found.difference is None
    assert found.explained_variance == pytest.approx(
        variance(dictionary, seen(rounded)), abs=1e-5
    )
    assert "nothing to compare with: model.name=/nowhere/tiny" in str(found)


def test_a_dictionary_that_knows_no_model_is_refused(rounded):
    with pytest.raises(
        UserError, match="names its model, unknown, but not the digest of its weights"
    ):
        check_model(random_dictionary(hook_name=HOOK), str(rounded))


def test_the_card_says_which_weights_and_what_they_are_made_of(dictionary):
    model = replace(dictionary.record.model, origin=EMBEDDED["smollm2"].origin)
    text = input_section(replace(dictionary, record=replace(dictionary.record, model=model)))
    assert f"Their digest is `{model.weight_digest}`" in text
    assert "4-bit file" in text
    assert "The Hub's weights give other activations" in text
    assert "4-bit" not in input_section(dictionary)


def test_the_record_of_the_embedded_model_says_that_it_is_from_a_4_bit_file():
    """Also one from before that was recorded."""
    from sae.base import JsonObject

    before = {"name": "smollm2", "hub_id": EMBEDDED["smollm2"].hub_id, "weight_digest": "x"}
    before |= {"dtype": "float32"}
    record = ModelRecord.from_json(JsonObject("file", "", before, ""))
    assert record.origin is not None
    assert "4-bit file SmolLM2-135M-Instruct.Q4_1.gguf" in record.origin
    assert record.hub_id.endswith("-Instruct")
