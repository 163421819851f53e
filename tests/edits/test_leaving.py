"""Edits that leave the house: control vectors and weights that equal the hook."""

import base64
import hashlib
import json
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
    modes = {file.stat().st_mode for file in (tmp_path / "baked").iterdir()}
    assert len(modes) == 1
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
        ({"where": {"sequences": ["all"], "except": []}}, "ranges for each sequence"),
        ({"where": {}}, "accept it there too with first_token=true"),
    ],
)
def test_what_is_not_the_same_everywhere_is_refused(tmp_path, folders, changes, words):
    m = sae.model(folders["llama"])
    one = dictionary_at(m, tmp_path / "one")
    record = {"dictionary": one, "feature": 3, "do": "add", "by": 2.0, "where": EVERYWHERE}
    path = file_of(tmp_path, record | changes)
    for call, out in ((sae.edit_export, "out.gguf"), (sae.edit_bake, "out")):
        with pytest.raises(UserError) as raised:
            call(file=path, out=str(tmp_path / out))
        assert words in str(raised.value)
        assert not (tmp_path / out).exists()


def test_the_first_token_may_be_accepted(tmp_path, folders):
    m = sae.model(folders["llama"])
    record = {"dictionary": dictionary_at(m, tmp_path / "one"), "feature": 3, "do": "add"}
    path = file_of(tmp_path, record | {"by": 2.0})
    sae.edit_export(file=path, out=str(tmp_path / "v.gguf"), first_token=True)
    with pytest.raises(UserError, match="exists already"):
        sae.edit_export(file=path, out=str(tmp_path / "v.gguf"), first_token=True)


@pytest.mark.parametrize("hook", ["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"])
def test_a_control_vector_stands_behind_blocks_from_the_second_on(tmp_path, folders, hook):
    m = sae.model(folders["llama"])
    one = dictionary_at(m, tmp_path / "one", hook)
    record = {"dictionary": one, "feature": 3, "do": "add", "by": 2.0, "where": EVERYWHERE}
    with pytest.raises(UserError, match=r"after (a )?block"):
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
    with pytest.raises(UserError, match="no bias of Gemma2ForCausalLM can do what an edit"):
        sae.edit_bake(file=path, out=str(tmp_path / "baked"))
    assert not (tmp_path / "baked").exists()


class Engine:
    """What EasySteer does with a specification, after its documentation and source.

    `SelectSpec` of vllm/steer_vectors/api.py, positions of algorithms/clause.py, and `direct`
    and `erase` of algorithms/.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        assert spec.keys() == {"vectors", "conflict"}
        assert spec["conflict"] == "sequential"
        self.vectors = spec["vectors"]

    def rows(self, apply: dict[str, Any], prompt: int, total: int) -> list[int]:
        """Which tokens are steered, of a prompt and what was written after it."""
        assert apply.keys() <= {
            "prompt",
            "generation",
            "prompt_window",
            "generation_window",
            "exclude_prompt_window",
        }
        # A clause that selects nothing is refused, and what excludes of a phase without any.
        of_prompt = "prompt" in apply or "prompt_window" in apply
        assert of_prompt or "generation" in apply or "generation_window" in apply
        assert of_prompt or "exclude_prompt_window" not in apply

        def inside(name: str, at: int, length: int) -> bool:
            if name not in apply:
                return False
            first, last = apply[name]
            first = first + length if first < 0 else first
            last = total if last is None else last + length if last < 0 else last
            return bool(first <= at < last)

        found = []
        for at in range(total):
            if at < prompt:
                chosen = apply.get("prompt") == "all" or inside("prompt_window", at, prompt)
                chosen &= not inside("exclude_prompt_window", at, prompt)
            else:
                step = at - prompt
                chosen = apply.get("generation") == "all"
                chosen |= inside("generation_window", step, total)
            found += [at] if chosen else []
        return found

    def logits(self, module: Any, ids: torch.Tensor, prompt: int) -> torch.Tensor:
        def hook(layer: int) -> Any:
            def change(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
                h = output.clone()
                for one in self.vectors:
                    data = one["data"]
                    assert (data["version"], data["kind"], data["extra"]) == (
                        1,
                        "direction",
                        {},
                    )
                    tensor = data["tensors"].get(f"layer.{layer}")
                    if tensor is None:
                        continue
                    raw = base64.b64decode(tensor["data"])
                    v = torch.frombuffer(bytearray(raw), dtype=torch.float32)
                    assert [*v.shape] == tensor["shape"]
                    at = self.rows(one["apply"], prompt, h.shape[1])
                    if one["algorithm"] == "direct":
                        h[:, at] += v
                    else:
                        assert one["algorithm"] == "erase"
                        h[:, at] -= (h[:, at] @ v)[..., None] / (v @ v + 1e-8) * v
                return h

            return change

        handles = [
            block.register_forward_hook(hook(i)) for i, block in enumerate(module.model.layers)
        ]
        with torch.no_grad():
            found: torch.Tensor = module(ids).logits
        for handle in handles:
            handle.remove()
        return found


def specification(tmp_path: Path, *records: Any, **about: Any) -> dict[str, Any]:
    (tmp_path / "spec.json").unlink(missing_ok=True)
    path = file_of(tmp_path, *records, **about)
    out = sae.edit_export(file=path, out=str(tmp_path / "spec.json"))
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.parametrize(
    "where",
    [
        {},
        {"except": []},
        {"prompt": [-3, None], "generated": "none"},
        {"prompt": "none", "generated": [1, 4]},
        {"prompt": [2, 6], "generated": [2, None], "except": [[-9, -5]]},
        {"generated": "none", "except": [[2, 4]]},
    ],
)
def test_a_specification_of_easysteer_does_what_the_hook_does(tmp_path, folders, where):
    m = sae.model(folders["llama"])
    one = dictionary_at(m, tmp_path / "one")
    first = dictionary_at(m, tmp_path / "two", "blocks.0.hook_resid_post")
    about = {"dictionary": one, "where": where}
    records = [
        about | {"features": [3, 9], "do": "add", "by": 20.0},
        about | {"feature": 5, "do": "orthogonal"},
        about | {"dictionary": first, "feature": 4, "do": "add", "by": -9.0},
    ]
    engine = Engine(specification(tmp_path, *records))
    ids = torch.from_numpy(m.language_model.prompt_ids(TEXT)).long()[None]
    with m.edited(records):
        whole = m.module.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        scores = m.module.generate(
            ids,
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        ).logits
    found = engine.logits(m.module, whole[:, :-1], ids.shape[1])[:, ids.shape[1] - 1 :]
    torch.testing.assert_close(found[0], torch.cat(scores), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        plain = m.module(whole[:, :-1]).logits[:, ids.shape[1] - 1 :]
    assert float((found - plain).abs().max()) > 1e-2


def test_a_specification_knows_a_vector_by_its_digest(tmp_path, folders):
    one = dictionary_at(sae.model(folders["llama"]), tmp_path / "one")
    record = {"dictionary": one, "feature": 3, "do": "add", "by": 2.0}
    (vector,) = specification(tmp_path, record)["vectors"]
    # As `Payload.to_wire` of vllm/steer_vectors/payloads.py makes it.
    digest = hashlib.sha256(b"direction:1" + b"layer.1" + b"(32,)")
    digest.update((2 * sae.load(one).W_dec[3]).numpy().tobytes())
    assert vector["data"]["sha256"] == digest.hexdigest()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"do": "set"}, "depends on the activations there"),
        ({"do": "orthogonal", "at": "every_writer"}, "sae edit bake makes weights of it"),
        ({"do": "orthogonal", "by": 0.5}, "EasySteer takes a direction out whole"),
        ({"when": {"feature": 1, "above": 0.0}}, "a gate opens at some tokens only"),
        ({"by": [1.0, 2.0]}, "an amount for each sequence"),
        ({"where": {"prompt": [[0, 4], [6, 7]]}}, "one range of the prompt, but there are 2"),
        ({"where": {"except": ["bos", [2, 4]]}}, "can leave out only one range of the prompt"),
        ({"where": {"except": [[2, 4]]}}, "may reach beyond the prompt"),
        ({"where": {"except": [[-2, None]]}}, "may reach beyond the prompt"),
        ({"where": {"sequences": ["all"]}}, "ranges for each sequence"),
    ],
)
def test_what_no_specification_can_say_is_refused(tmp_path, folders, changes, words):
    one = dictionary_at(sae.model(folders["llama"]), tmp_path / "one")
    record = {"dictionary": one, "feature": 3, "do": "add", "by": 2.0}
    with pytest.raises(UserError) as raised:
        specification(tmp_path, record | changes)
    assert words in str(raised.value)
    assert not (tmp_path / "spec.json").exists()


def test_an_export_is_told_by_its_name(tmp_path):
    for out, more, words in (
        ("edits.bin", {}, "has an unknown ending; give a name that ends in .gguf"),
        ("edits.json", {"first_token": True}, "first_token=true is for control vectors"),
    ):
        with pytest.raises(UserError, match=words):
            sae.edit_export(file="edits.yaml", out=str(tmp_path / out), **more)
