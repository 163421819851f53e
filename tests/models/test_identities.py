"""Names of places are only given where TransformerLens's identities hold in the model."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.families import BLOCKS, MODELS, PLACES, first, random_model
from support.identities import IDS, by_block, check_identities, scrambled, seen_at
from support.tiny import tiny
from torch import Tensor

from sae.base import JsonObject
from sae.base.errors import UserError
from sae.edits import ALL, Add, Edit, edited
from sae.models.hooks import find_site, list_sites, locate, measured, read_activations
from sae.models.site import Site, site_before_records

STREAM = {"hook_resid_pre", "hook_resid_post"}
NORMED = {"hook_resid_pre", "hook_normalized_resid_post"}
MLP = {"hook_mlp_out", "mlp.hook_post", "mlp.hook_in", "hook_mlp_in"}
ATTN = {"hook_attn_out", "attn.hook_z"}
WHOLE = {*STREAM, *ATTN, *MLP, "hook_resid_mid"}
SCALED = WHOLE - {"hook_attn_out", "hook_mlp_out"}
# A family of each kind, and the names that its code can keep.
KINDS = {
    "bloom": WHOLE,
    "granite": SCALED,
    "glm4": WHOLE,
    "openai-gpt": WHOLE | NORMED,
    "doge": STREAM,
    "minimax": STREAM,
    "mpt": WHOLE,
    "opt": WHOLE,
    "falcon": STREAM | ATTN | MLP - {"hook_mlp_in"},
    "gpt_neox": WHOLE - {"hook_resid_mid"},
    "olmo": WHOLE | {"ln2.hook_normalized"},
    "rwkv": WHOLE - {"mlp.hook_post"},
    "mamba": STREAM,
    "xlnet": set(),
    "distilbert": WHOLE | NORMED,
    "t5": WHOLE,
}


def made(family: str, **own: Any) -> Any:
    import transformers

    auto = {
        "distilbert": transformers.AutoModel,
        "t5": Named(transformers.T5EncoderModel),
    }
    return scrambled(tiny(family, auto.get(family, transformers.AutoModelForCausalLM), **own))


class Named:
    """A class of its own in the place of an automatic one."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def from_config(self, config: Any) -> Any:
        return self.kind(config)


@pytest.mark.parametrize("family", KINDS)
def test_a_family_of_each_kind_has_the_names_that_hold_and_no_others(family):
    model = made(family)
    assert {hook for sites in by_block(model).values() for hook in sites} == KINDS[family]
    check_identities(model)
    with torch.device("meta"):
        skeleton = type(model)(model.config)
    assert list_sites(skeleton) == list_sites(model)


def test_what_a_block_multiplies_has_no_name_and_is_refused_without_another_in_its_place():
    model = made("granite")
    with pytest.raises(UserError) as refused:
        find_site(model, "blocks.1.hook_mlp_out")
    assert "nothing in that block of GraniteForCausalLM is what TransformerLens" in str(
        refused.value
    )
    assert "nearest" not in str(refused.value)
    assert "hook_resid" not in str(refused.value)
    # Where nothing is multiplied the same code has the names.
    assert {*by_block(made("granite", residual_multiplier=1.0))[0]} == WHOLE


def test_bloom_adds_the_stream_inside_of_its_parts_and_the_names_are_before_that():
    model = made("bloom")
    found = {hook: find_site(model, f"blocks.1.{hook}") for hook in WHOLE}
    assert found["hook_mlp_out"].module == "transformer.h.1.mlp.dense_4h_to_h"
    assert found["hook_attn_out"].module == "transformer.h.1.self_attention.dense"
    seen = seen_at(model, [found["hook_mlp_out"], find_site(model, "transformer.h.1.mlp")])
    mlp_out, returned = seen.values()
    assert not torch.allclose(mlp_out, returned, atol=0.1)


def test_places_that_have_all_tokens_in_one_row_are_read_by_sequence_and_position():
    model = made("opt")
    site = find_site(model, "blocks.1.hook_mlp_out")
    assert (site.module, site.flat) == ("model.decoder.layers.1.fc2", True)
    assert Site.from_json(as_json(site)) == site
    (x,) = read_activations(model, [site], IDS).values()
    (alone,) = read_activations(model, [site], IDS[1:]).values()
    assert x.shape == (*IDS.shape, 32)
    torch.testing.assert_close(x[1:], alone)


def as_json(site: Site) -> JsonObject:
    return JsonObject("a file", "", json.loads(json.dumps(site.to_json())), "mend it")


# A module that is called several times in a forward pass.

LAYER = "encoder.albert_layer_groups.0.albert_layers.0"


@pytest.fixture(scope="module")
def albert() -> Any:
    import transformers

    return scrambled(tiny("albert", transformers.AutoModel, num_hidden_layers=4))


@torch.no_grad()
def outputs(model: Any) -> list[Tensor]:
    """What ALBERT's one layer returns, call by call, by a plain hook."""
    seen: list[Tensor] = []
    layer = model.get_submodule(LAYER)
    hook = layer.register_forward_hook(lambda _, __, out: seen.append(first(out).clone()))
    model(IDS)
    hook.remove()
    return seen


def test_a_module_that_is_called_several_times_is_refused_until_a_call_is_named(albert):
    assert list_sites(albert) == []
    with pytest.raises(UserError, match=rf"{LAYER} is called 4 times .*#0 to {LAYER}#3"):
        find_site(albert, LAYER)
    with pytest.raises(UserError, match="#4 is not a call of that module; choose"):
        find_site(albert, f"{LAYER}#4")
    with pytest.raises(UserError, match="#1 is not a call of that module; choose pooler"):
        find_site(albert, "pooler#1")
    before = Site(LAYER, LAYER, "output", 32)
    with pytest.raises(UserError, match=r"was read at .* which is called 4 times"):
        locate(albert, before)


def test_each_call_is_read_as_a_plain_hook_sees_it(albert):
    sites = [find_site(albert, f"{LAYER}#{call}") for call in (2, 0, 3)]
    expected = outputs(albert)
    assert len(expected) == 4
    seen = read_activations(albert, sites, IDS)
    for site in sites:
        assert torch.equal(seen[site.hook_name], expected[site.call])
        (alone,) = read_activations(albert, [site], IDS).values()
        assert torch.equal(alone, expected[site.call])
        assert Site.from_json(as_json(site)) == site == locate(albert, site)
        assert site_before_records(site.hook_name, site.path, 32) == replace(site, width=32)
    given = find_site(albert, f"{LAYER}.input#2")
    (x,) = read_activations(albert, [given], IDS).values()
    assert torch.equal(x, expected[1])
    assert measured(albert, [given])[0].width == 32


def test_an_edit_changes_the_call_that_it_names_and_what_follows(albert):
    clean, site = outputs(albert), find_site(albert, f"{LAYER}#1")
    with edited(albert, [Edit(site, Add(torch.ones(32)), ALL)]):
        twice = [outputs(albert) for _ in range(2)]
    for found in twice:
        assert torch.equal(found[0], clean[0])
        # A plain hook that comes after an edit sees what it left.
        torch.testing.assert_close(found[1], clean[1] + 1)
        assert not torch.allclose(found[2], clean[2], atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_path_with_its_side_is_the_place_of_that_name(family):
    model = scrambled(random_model(*MODELS[family]))
    for hook, (path, side) in PLACES[family].items():
        name, path = f"blocks.1.{hook}", path.format(1)
        assert find_site(model, path + ".input" * (side == "input")).hook_name == name
    plain = find_site(model, f"{BLOCKS[family]}.1.{DOWN[family]}.output")
    assert plain.path == f"{BLOCKS[family]}.1.{DOWN[family]}"


DOWN = {"llama": "mlp.gate_proj", "bert": "attention.self.query"}
