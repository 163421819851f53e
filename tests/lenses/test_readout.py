"""Lenses on small random models: exact where they must be, and without a trace."""

from pathlib import Path

import pytest
import torch
from support.families import (
    MODELS,
    PLACES,
    TOKENS,
    hook_count,
    logits,
    plainly,
    random_model,
)

import sae
from sae.base import UserError
from sae.lenses import LENS, TunedLens, read_lens
from sae.lenses.ridge import Affine
from sae.lenses.streams import hook_of, layer_of, lens_logits, read_streams
from sae.models.hooks import find_site
from sae.models.load import ModelConfig, load_model
from sae.models.site import Site

CAUSAL = [family for family in PLACES if family != "bert"]
TEXT = "the old mill where she kept seven cats"


@pytest.fixture(scope="module", params=CAUSAL)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def module(family):
    return random_model(*MODELS[family])


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(ModelConfig(name=str(tiny_model), device="cpu"))


@pytest.fixture(scope="module")
def maps(model):
    draw = torch.Generator().manual_seed(1)
    made = {
        layer: Affine(torch.randn(32, 32, generator=draw), torch.randn(32, generator=draw))
        for layer in (-1, 1)
    }
    return TunedLens(made, "digest", model.record, {})


def records(table, **wanted):
    found = table.to_pylist()
    return [r for r in found if all(r[key] == value for key, value in wanted.items())]


def test_at_the_last_block_the_lens_is_the_model_to_the_bit(module):
    streams = read_streams(module, TOKENS)
    expected = logits(module)
    assert torch.equal(streams.logits, expected)
    assert torch.equal(lens_logits(module, streams.hidden[-1], TOKENS), expected)
    assert not torch.equal(lens_logits(module, streams.hidden[1], TOKENS), expected)


def test_streams_are_what_plain_hooks_see_and_nothing_is_left_behind(family, module):
    before = hook_count(module)
    hidden = read_streams(module, TOKENS).hidden
    block = PLACES[family]["hook_resid_pre"][0]
    assert torch.equal(hidden[0], plainly(module, block.format(0), "input"))
    for i in range(3):
        assert torch.equal(hidden[i + 1], plainly(module, block.format(i), "output"))
    lens_logits(module, hidden[1], TOKENS)
    assert hook_count(module) == before
    assert not any("forward" in vars(part) for part in module.modules())


def test_several_texts_at_once_give_what_each_gives_alone(module):
    hidden = read_streams(module, TOKENS).hidden[2]
    together = lens_logits(module, hidden, TOKENS)
    for i in range(len(TOKENS)):
        alone = lens_logits(module, hidden[i : i + 1], TOKENS[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)


def test_places_between_blocks_have_a_layer_and_others_none(module):
    for layer in (-1, 0, 2):
        assert layer_of(module, find_site(module, hook_of(layer))) == layer
    assert layer_of(module, find_site(module, "blocks.1.hook_resid_pre")) == 0
    assert layer_of(module, find_site(module, "blocks.1.hook_mlp_out")) is None
    assert layer_of(module, Site("lm_head", "lm_head", "output")) is None


def test_the_table_has_every_layer_and_position_and_ends_in_the_model(model):
    table = read_lens(model, TEXT)
    ids = torch.from_numpy(model.prompt_ids(TEXT)).long()
    assert table.column_names == [*LENS.columns]
    assert len(table) == 4 * len(ids)
    assert [r["layer"] for r in records(table, position=0)] == [-1, 0, 1, 2]
    with torch.no_grad():
        own = model.module(ids[None]).logits[0].log_softmax(-1)
    for record in records(table, layer=2):
        expected = own[record["position"]]
        assert record["kl"] == 0
        assert record["own_rank"] == 1
        assert record["top_ids"] == expected.topk(5).indices.tolist()
        assert record["top_probabilities"] == pytest.approx(expected.topk(5).values.exp())
    assert "".join(r["token"] for r in records(table, layer=0)) == f"<s>{TEXT}"


def test_figures_of_a_layer_are_those_of_its_definition(model):
    table = read_lens(model, TEXT, n_top=3)
    ids = torch.from_numpy(model.prompt_ids(TEXT)).long()[None]
    streams = read_streams(model.module, ids)
    own = streams.logits[0].double().log_softmax(-1)
    lens = lens_logits(model.module, streams.hidden[1], ids)[0].double().log_softmax(-1)
    for record in records(table, layer=0):
        p, q = own[record["position"]], lens[record["position"]]
        best = int(p.argmax())
        assert record["kl"] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-4)
        assert record["own_rank"] == 1 + int((q > q[best]).sum())
        assert record["own_log_probability"] == pytest.approx(float(q[best]), rel=1e-4)
        assert len(record["top_tokens"]) == 3


def test_a_tuned_lens_maps_the_stream_first_and_ends_in_the_model_too(model, maps):
    table = read_lens(model, TEXT, tuned=maps)
    ids = torch.from_numpy(model.prompt_ids(TEXT)).long()[None]
    hidden = read_streams(model.module, ids).hidden[2]
    mapped = hidden @ maps.maps[1].W + maps.maps[1].b
    expected = lens_logits(model.module, mapped, ids)[0].argmax(-1).tolist()
    found = records(table, kind="tuned", layer=1)
    assert [r["top_ids"][0] for r in found] == expected
    assert {r["layer"] for r in records(table, kind="tuned")} == {-1, 1, 2}
    assert {r["kl"] for r in records(table, kind="tuned", layer=2)} == {0.0}


def test_maps_of_another_model_are_refused(model, maps, tmp_path, tokenizer_folder):
    from support.world import save_tiny_model

    folder = save_tiny_model("llama", tmp_path / "other", tokenizer_folder, seed=5)
    other = load_model(ModelConfig(name=str(folder), device="cpu"))
    with pytest.raises(
        UserError, match=r"the tuned lens belongs to .* weights .* give the model"
    ):
        read_lens(other, TEXT, tuned=maps)


def test_maps_are_read_as_they_were_written_and_damage_is_refused(maps, tmp_path):
    from sae.lenses import fitted_digest, load_tuned

    folder = tmp_path / "maps"
    assert fitted_digest(folder) is None
    with pytest.raises(UserError, match="contains no maps of a tuned lens; fit them with"):
        load_tuned(folder)
    maps.save(folder)
    assert fitted_digest(folder) == "digest"
    found = load_tuned(folder)
    assert found.model == maps.model
    for layer, one in maps.maps.items():
        assert torch.equal(found.maps[layer].W, one.W)
        assert torch.equal(found.maps[layer].b, one.b)
    file = folder / "maps.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"oops")
    assert fitted_digest(folder) is None
    with pytest.raises(UserError, match="is damaged"):
        load_tuned(folder)


def test_a_model_in_hand_shows_its_lens_and_sees_edits(model):
    in_hand = sae.Model(model)
    plain = in_hand.lens(TEXT)
    assert plain.tokens == in_hand.tokens(TEXT)
    edit = sae.edit(at="blocks.0.hook_resid_post", token=" cats", do="add", by=50)
    with in_hand.edited(edit):
        turned = in_hand.lens(TEXT)
    same = plain.table.slice(0, len(plain.tokens))
    assert turned.table["top_ids"].slice(0, len(plain.tokens)) == same["top_ids"]
    assert turned.table["top_ids"] != plain.table["top_ids"]
    assert in_hand.lens(TEXT).table == plain.table


def test_an_edit_of_what_the_last_block_returns_is_refused(model):
    in_hand = sae.Model(model)
    edit = sae.edit(at="blocks.2.hook_resid_post", token=" cats", do="add", by=50)
    with (
        in_hand.edited(edit),
        pytest.raises(UserError, match="the output of the model's last block is changed"),
    ):
        in_hand.lens(TEXT)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the text is empty; write something"),
        ("the " * 200, r"the text has \d+ tokens, but the model reads only 128 at once"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused(model, text, sentence):
    with pytest.raises(UserError, match=sentence):
        sae.Model(model).lens(text)


def test_a_model_that_cannot_be_resumed_is_refused_by_name(tiny_model):
    model = load_model(ModelConfig(name=str(tiny_model), device="cpu"))
    kept = []
    layers = model.module.model.layers
    layers[0].mlp.register_forward_hook(lambda _, __, out: kept.append(out))
    layers[2].mlp.register_forward_pre_hook(lambda _, args: (args[0] + kept[-1],))
    layers[2].register_forward_hook(lambda _, __, out: out + kept[-1])
    model.module.model.norm.register_forward_pre_hook(lambda _, args: (args[0] + kept[-1],))
    with pytest.raises(UserError, match="LlamaForCausalLM cannot be run from block 3 on"):
        read_lens(model, TEXT)


def test_the_page_of_docs_defines_every_column():
    page = (Path(sae.__file__).parents[1] / "docs" / "lenses.md").read_text(encoding="utf-8")
    for column in LENS.columns.values():
        kind = column.kind.replace("list<", "list of ").replace(">", "")
        assert f"| `{column.name}` | {kind} | {column.meaning} |" in page
