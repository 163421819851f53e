"""Edits that leave the house: control vectors and weights that equal the hook."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.world import HOOK, random_dictionary, save_tiny_model

import sae
from sae.base.errors import UserError
from sae.edits import Edits
from sae.models.hooks import find_site

TEXT = "Note 0-1: the river ran past"
EVERYWHERE = {"except": []}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> dict[str, str]:
    place = tmp_path_factory.mktemp("models")
    return {
        family: str(save_tiny_model(family, place / family, tokenizer_folder))
        for family in ("llama", "gpt2", "gpt_neox")
    }


def dictionary_at(m: sae.Model, folder: Path, hook: str = HOOK) -> str:
    from dataclasses import replace

    d = random_dictionary("standard").placed(find_site(m.module, hook))
    d = replace(d, record=replace(d.record, model=m.language_model.record))
    sae.save(d, str(folder))
    return str(folder)


def file_of(tmp_path: Path, *records: Any, **about: Any) -> str:
    path = tmp_path / "edits.yaml"
    Edits.from_plain({"edits": list(records), **about}).save(path)
    return str(path)


@pytest.mark.parametrize("hook", ["hook_resid_post", "hook_mlp_out", "hook_attn_out"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_weights_do_what_the_hook_does(tmp_path, folders, family, hook):
    m, at = sae.model(folders[family]), f"blocks.1.{hook}"
    np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=32).astype(np.float32))
    direction = {"at": at, "direction": str(tmp_path / "v.npy"), "do": "add", "by": 5.0}
    records = [direction | {"where": EVERYWHERE}, direction | {"by": 2.0, "where": EVERYWHERE}]
    path = file_of(tmp_path, *records, model=folders[family])
    sae.edit_bake(file=path, out=str(tmp_path / "baked"))
    theirs = sae.model(str(tmp_path / "baked"))
    ids = torch.from_numpy(m.language_model.prompt_ids(TEXT)).long()[None]
    with torch.no_grad():
        plain = m.module(ids).logits
        with m.edited(path):
            edited, text = m.module(ids).logits, m.generate(TEXT)
        found = theirs.module(ids).logits
    scale = float((edited - plain).abs().max())
    assert float((found - edited).abs().max()) < 1e-5 * max(scale, float(edited.abs().max()))
    assert theirs.generate(TEXT) == text


@pytest.mark.parametrize("factor", [0.0, 0.5])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_a_direction_taken_out_of_all_weights_is_that_of_hooks_at_every_writer(
    tmp_path, folders, family, factor
):
    m, vector = sae.model(folders[family]), str(tmp_path / "v.npy")
    np.save(vector, np.random.default_rng(0).normal(size=32).astype(np.float32))
    record = {"direction": vector, "do": "orthogonal", "at": "every_writer", "by": factor}
    # Of two that are alike each is made.
    both = [record | {"where": EVERYWHERE}] * 2
    path = file_of(tmp_path, *both, model=folders[family])
    sae.edit_bake(file=path, out=str(tmp_path / "baked"))
    theirs = sae.model(str(tmp_path / "baked"))
    ids = torch.from_numpy(m.language_model.prompt_ids(TEXT)).long()[None]
    with torch.no_grad(), m.edited(path):
        edited, text = m.module(ids).logits, m.generate(TEXT)
    with torch.no_grad():
        found = theirs.module(ids).logits
    assert float((found - edited).abs().max()) < 1e-4 * float(edited.abs().max())
    assert theirs.generate(TEXT) == text != m.generate(TEXT)
    if factor == 0:
        w = torch.from_numpy(np.load(vector))
        x = theirs.activations(TEXT, "blocks.2.hook_resid_post")
        assert float((x @ (w / w.norm())).abs().max()) < 1e-3 * float(x.norm(dim=1).max())


def test_a_control_vector_is_read_back_as_it_was_written(tmp_path, folders):
    from gguf import GGUFReader

    m = sae.model(folders["llama"])
    one = dictionary_at(m, tmp_path / "one")
    two = dictionary_at(m, tmp_path / "two", "blocks.2.hook_resid_post")
    path = file_of(
        tmp_path,
        {"dictionary": one, "feature": 3, "do": "add", "by": 2.0, "where": EVERYWHERE},
        {"dictionary": two, "features": [4, 5], "do": "add", "by": 1.0, "where": EVERYWHERE},
        {"dictionary": one, "feature": 7, "do": "add", "by": -1.0, "where": EVERYWHERE},
    )
    out = sae.edit_export(file=path, out=str(tmp_path / "v.gguf"))
    reader = GGUFReader(out)
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    w, v = sae.load(one).W_dec, sae.load(two).W_dec
    assert [*found] == ["direction.1", "direction.2"]
    np.testing.assert_allclose(found["direction.1"], (2 * w[3] - w[7]).numpy(), rtol=1e-6)
    np.testing.assert_allclose(found["direction.2"], (v[4] + v[5]).numpy(), rtol=1e-6)
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.layer_count"].contents() == 3
    # Added behind the blocks of these numbers, it does what the edits do.
    ids = torch.from_numpy(m.language_model.prompt_ids(TEXT)).long()[None]

    def adding(vector: Any) -> Any:
        return lambda _, __, output: output + torch.tensor(np.array(vector))

    handles = [
        m.module.model.layers[k].register_forward_hook(adding(found[f"direction.{k}"]))
        for k in (1, 2)
    ]
    with torch.no_grad():
        expected = m.module(ids).logits
        for handle in handles:
            handle.remove()
        with m.edited(path):
            torch.testing.assert_close(m.module(ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"do": "set"}, "depends on the activations there"),
        ({"when": {"feature": 1, "above": 0.0}}, "a gate opens at some tokens only"),
        ({"by": [1.0, 2.0]}, "an amount for each sequence"),
        ({"where": {"prompt": [0, 4], "except": []}}, "at some tokens only"),
        ({"where": {"except": [[2, 4]]}}, "leaves out some tokens"),
        ({"where": {}}, "accept it there too with first_token=true"),
    ],
)
def test_what_is_not_the_same_everywhere_is_refused(tmp_path, folders, changes, words):
    m = sae.model(folders["llama"])
    one = dictionary_at(m, tmp_path / "one")
    record = {"dictionary": one, "feature": 3, "do": "add", "by": 2.0, "where": EVERYWHERE}
    path = file_of(tmp_path, record | changes)
    for call in (sae.edit_export, sae.edit_bake):
        with pytest.raises(UserError) as raised:
            call(file=path, out=str(tmp_path / "out"))
        assert words in str(raised.value)
        assert not (tmp_path / "out").exists()


def test_the_first_token_may_be_accepted(tmp_path, folders):
    m = sae.model(folders["llama"])
    record = {"dictionary": dictionary_at(m, tmp_path / "one"), "feature": 3, "do": "add"}
    path = file_of(tmp_path, record | {"by": 2.0})
    sae.edit_export(file=path, out=str(tmp_path / "v.gguf"), first_token=True)
    with pytest.raises(UserError, match="is there already"):
        sae.edit_export(file=path, out=str(tmp_path / "v.gguf"), first_token=True)


@pytest.mark.parametrize("hook", ["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"])
def test_a_control_vector_stands_behind_blocks_from_the_second_on(tmp_path, folders, hook):
    m = sae.model(folders["llama"])
    one = dictionary_at(m, tmp_path / "one", hook)
    record = {"dictionary": one, "feature": 3, "do": "add", "by": 2.0, "where": EVERYWHERE}
    with pytest.raises(UserError, match=r"behind block"):
        sae.edit_export(file=file_of(tmp_path, record), out=str(tmp_path / "v.gguf"))
    assert not (tmp_path / "v.gguf").exists()


def test_a_model_that_has_no_place_for_the_bias_is_refused(tmp_path, tokenizer_folder):
    from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

    sizes = {
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    Gemma2ForCausalLM(Gemma2Config(**sizes)).save_pretrained(tmp_path / "gemma")
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(tmp_path / "gemma")
    np.save(tmp_path / "v.npy", np.ones(32, np.float32))
    record = {"at": HOOK, "direction": str(tmp_path / "v.npy"), "do": "add", "by": 5.0}
    path = file_of(tmp_path, record | {"where": EVERYWHERE}, model=str(tmp_path / "gemma"))
    with pytest.raises(UserError, match="no bias of Gemma2ForCausalLM does what an edit"):
        sae.edit_bake(file=path, out=str(tmp_path / "baked"))
    assert not (tmp_path / "baked").exists()
