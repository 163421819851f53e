"""Reading and editing inside models, against plain torch hooks."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_tiny_model
from torch import Tensor, nn

from sae.base.errors import UserError
from sae.models.hooks import (
    HookPoint,
    edited,
    edited_from,
    find_hook,
    list_hooks,
    read_activations,
    writes_to_stream,
)
from sae.models.load import ModelConfig, load_skeleton

# Where a reader of the model's code would look for each hook, written down once more here.
PLACES = {
    "llama": {
        "hook_resid_pre": ("model.layers.{}", "input"),
        "hook_resid_mid": ("model.layers.{}.post_attention_layernorm", "input"),
        "hook_resid_post": ("model.layers.{}", "output"),
        "hook_attn_out": ("model.layers.{}.self_attn", "output"),
        "attn.hook_z": ("model.layers.{}.self_attn.o_proj", "input"),
        "hook_mlp_out": ("model.layers.{}.mlp", "output"),
        "mlp.hook_post": ("model.layers.{}.mlp.down_proj", "input"),
    },
    "gpt2": {
        "hook_resid_pre": ("transformer.h.{}", "input"),
        "hook_resid_mid": ("transformer.h.{}.ln_2", "input"),
        "hook_resid_post": ("transformer.h.{}", "output"),
        "hook_attn_out": ("transformer.h.{}.attn", "output"),
        "attn.hook_z": ("transformer.h.{}.attn.c_proj", "input"),
        "hook_mlp_out": ("transformer.h.{}.mlp", "output"),
        "mlp.hook_post": ("transformer.h.{}.mlp.c_proj", "input"),
    },
    "gpt_neox": {
        "hook_resid_pre": ("gpt_neox.layers.{}", "input"),
        "hook_resid_post": ("gpt_neox.layers.{}", "output"),
        "hook_attn_out": ("gpt_neox.layers.{}.attention", "output"),
        "attn.hook_z": ("gpt_neox.layers.{}.attention.dense", "input"),
        "hook_mlp_out": ("gpt_neox.layers.{}.mlp", "output"),
        "mlp.hook_post": ("gpt_neox.layers.{}.mlp.dense_4h_to_h", "input"),
    },
}
BLOCKS = {"llama": "model.layers", "gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}
CASES = [(family, hook) for family, places in PLACES.items() for hook in places]
TOKENS = torch.arange(2, 2 + 3 * 11).reshape(3, 11) * 7 % 390


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices this small are faster on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    return {
        family: AutoModelForCausalLM.from_pretrained(
            save_tiny_model(family, tmp_path_factory.mktemp(family), tokenizer_folder)
        ).eval()
        for family in PLACES
    }


def first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def plainly(model: nn.Module, path: str, side: str) -> Tensor:
    """The activations at one place, from a whole forward with a plain torch hook."""
    seen = []
    module = model.get_submodule(path)
    if side == "output":
        handle = module.register_forward_hook(lambda _, __, out: seen.append(first(out)))
    else:
        handle = module.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
    with torch.no_grad():
        model(TOKENS)
    handle.remove()
    assert len(seen) == 1
    return seen[0].clone()


def read(model: nn.Module, *names: str) -> dict[str, Tensor]:
    return read_activations(model, [find_hook(model, name) for name in names], TOKENS)


@pytest.mark.parametrize(("family", "hook"), CASES)
def test_a_hook_reads_the_very_bits_of_a_plain_torch_hook(models, family, hook):
    path, side = PLACES[family][hook]
    for block in range(3):
        name = f"blocks.{block}.{hook}"
        expected = plainly(models[family], path.format(block), side)
        assert torch.equal(read(models[family], name)[name], expected)


@pytest.mark.parametrize("family", PLACES)
def test_the_hooks_that_are_listed_are_those_that_exist(models, family):
    expected = {f"blocks.{i}.{hook}" for i in range(3) for hook in PLACES[family]}
    assert {point.hook_name for point in list_hooks(models[family])} == expected


@pytest.mark.parametrize("family", PLACES)
def test_the_residual_stream_is_what_transformers_calls_hidden_states(models, family):
    with torch.no_grad():
        states = models[family](TOKENS, output_hidden_states=True).hidden_states
    names = [f"blocks.{i}.hook_resid_pre" for i in range(3)]
    names += [f"blocks.{i}.hook_resid_post" for i in range(2)]
    seen = read(models[family], *names)
    for name, state in zip(names, [*states[:3], *states[1:3]], strict=True):
        assert torch.equal(seen[name], state), name


@pytest.mark.parametrize("family", PLACES)
def test_all_hooks_of_one_forward_equal_those_read_one_by_one(models, family):
    names = [point.hook_name for point in list_hooks(models[family])]
    together = read(models[family], *reversed(names))
    assert set(together) == set(names)
    for name in names:
        assert torch.equal(together[name], read(models[family], name)[name]), name


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_attention_and_mlp_add_up_to_the_residual_stream(models, family):
    model = models[family]
    for i in range(3):
        seen = {
            k.split(".", 2)[2]: v for k, v in read(model, *names_of_block(model, i)).items()
        }
        middle = seen["hook_resid_pre"] + seen["hook_attn_out"]
        torch.testing.assert_close(seen["hook_resid_mid"], middle)
        after = seen["hook_resid_mid"] + seen["hook_mlp_out"]
        torch.testing.assert_close(seen["hook_resid_post"], after)


def names_of_block(model: nn.Module, i: int) -> list[str]:
    names = [point.hook_name for point in list_hooks(model)]
    return [name for name in names if name.startswith(f"blocks.{i}.")]


def test_gpt_neox_adds_attention_and_mlp_in_parallel(models):
    names = names_of_block(models["gpt_neox"], 1)
    seen = {k.split(".", 2)[2]: v for k, v in read(models["gpt_neox"], *names).items()}
    total = seen["hook_resid_pre"] + seen["hook_attn_out"] + seen["hook_mlp_out"]
    torch.testing.assert_close(seen["hook_resid_post"], total)


@pytest.mark.parametrize("family", ["gemma2", "olmo2"])
def test_in_models_that_norm_what_they_add_the_hooks_still_add_up(family):
    import transformers

    config = {"gemma2": transformers.Gemma2Config, "olmo2": transformers.Olmo2Config}[family](
        vocab_size=400,
        num_hidden_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=1,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    for i in range(2):
        seen = {
            k.split(".", 2)[2]: v for k, v in read(model, *names_of_block(model, i)).items()
        }
        middle = seen["hook_resid_pre"] + seen["hook_attn_out"]
        torch.testing.assert_close(seen["hook_resid_mid"], middle)
        after = seen["hook_resid_mid"] + seen["hook_mlp_out"]
        torch.testing.assert_close(seen["hook_resid_post"], after)


@pytest.mark.parametrize("family", PLACES)
@pytest.mark.parametrize("block", [0, 1])
def test_the_forward_stops_after_the_last_hook_that_is_needed(models, family, block):
    model = models[family]
    finished: Counter[str] = Counter()
    handles = [
        module.register_forward_hook(lambda *_, name=name: finished.update([name]))
        for name, module in model.named_modules()
    ]
    try:
        read(model, "blocks.0.hook_resid_pre", f"blocks.{block}.mlp.hook_post")
    finally:
        for handle in handles:
            handle.remove()
    blocks = BLOCKS[family]
    # Everything before is computed once; the last matrix of this MLP and all that follows not.
    assert [finished[f"{blocks}.{i}"] for i in range(3)] == [int(i < block) for i in range(3)]
    attention = PLACES[family]["hook_attn_out"][0].format(block)
    assert finished[attention] == 1
    assert finished[PLACES[family]["mlp.hook_post"][0].format(block)] == 0
    head = next(n for n, m in model.named_modules() if m is model.get_output_embeddings())
    assert finished[head] == 0


def hook_count(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_no_hook_is_left_behind_when_reading_ends_or_fails(models):
    model = models["llama"]
    before = hook_count(model)
    read(model, "blocks.1.hook_mlp_out")
    with pytest.raises(IndexError):
        read_activations(model, [find_hook(model, "blocks.1.hook_resid_post")], TOKENS + 10_000)
    assert hook_count(model) == before


@pytest.mark.parametrize("family", PLACES)
def test_a_module_path_is_a_hook_name(models, family):
    path = f"{BLOCKS[family]}.1"
    by_path = read(models[family], path)[path]
    name = "blocks.1.hook_resid_post"
    assert torch.equal(by_path, read(models[family], name)[name])
    both = read(models[family], path, name)
    assert torch.equal(both[path], both[name])


def test_unknown_places_are_refused_with_what_is_near(models):
    with pytest.raises(UserError, match=r"layer 7 is out of range.*layers 0 to 2"):
        find_hook(models["llama"], "blocks.7.hook_resid_post")
    with pytest.raises(UserError, match=r"nearest: .*blocks\.1\.hook_resid_post"):
        find_hook(models["llama"], "blocks.1.hook_residpost")
    with pytest.raises(UserError, match="no place in this model"):
        find_hook(models["llama"], "")


def test_places_without_one_vector_a_token_are_refused(models):
    for path in ("model", "model.rotary_emb"):
        with pytest.raises(UserError, match=f"{path} does not give one vector a token"):
            read(models["llama"], path)
    with pytest.raises(
        UserError, match=r"model\.layers is a part that the model does not call"
    ):
        read(models["llama"], "model.layers")


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize(("family", "hook"), CASES)
def test_an_identity_edit_leaves_the_logits_bit_equal(models, family, hook):
    calls = []
    with edited(
        models[family],
        find_hook(models[family], f"blocks.1.{hook}"),
        lambda x: calls.append(x.shape) or x.clone(),
    ):
        inside = logits(models[family])
    assert len(calls) == 1
    assert torch.equal(inside, logits(models[family]))


@pytest.mark.parametrize(("family", "hook"), CASES)
def test_an_edit_reaches_the_logits_and_ends_with_its_context(models, family, hook):
    model = models[family]
    before = logits(model)
    with edited(model, find_hook(model, f"blocks.1.{hook}"), torch.zeros_like):
        assert not torch.allclose(logits(model), before)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("family", PLACES)
def test_what_an_edit_returns_takes_the_place_of_the_activations(models, family):
    model = models[family]
    name, following = "blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"
    original = read(model, name)[name]
    with edited(model, find_hook(model, name), lambda x: 2 * x):
        assert torch.equal(read(model, following)[following], 2 * original)


@pytest.mark.parametrize("hook", ["hook_resid_pre", "hook_resid_post"])
def test_an_edit_is_removed_when_its_context_or_itself_raises(models, hook):
    model = models["gpt2"]
    before = logits(model)
    point = find_hook(model, f"blocks.2.{hook}")

    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("inside the edit")

    with pytest.raises(KeyError), edited(model, point, torch.zeros_like):
        raise KeyError("inside the context")
    assert torch.equal(logits(model), before)
    with pytest.raises(RuntimeError, match="inside the edit"), edited(model, point, fails):
        logits(model)
    assert torch.equal(logits(model), before)


def test_a_block_that_gets_its_input_by_keyword_is_read_and_edited_too():
    class Block(nn.Module):
        def forward(self, *, hidden_states: Tensor) -> Tensor:
            return hidden_states + 1

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, tokens: Tensor, use_cache: bool = False) -> Tensor:
            return self.block(hidden_states=tokens[..., None].float().expand(-1, -1, 4))

    model, point = Model(), HookPoint("x", "block", "input")
    assert read_activations(model, [point], TOKENS)["x"].shape == (*TOKENS.shape, 4)
    with edited(model, point, torch.zeros_like):
        assert torch.equal(model(TOKENS), torch.ones(*TOKENS.shape, 4))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_edit_in_the_middle_of_a_block_changes_the_stream_and_not_the_mlp_alone(
    family, tmp_path, tokenizer_folder
):
    from transformers import AutoModelForCausalLM

    folder = save_tiny_model(family, tmp_path / family, tokenizer_folder)
    module = AutoModelForCausalLM.from_pretrained(folder).eval()
    mid = find_hook(module, "blocks.1.hook_resid_mid")
    outputs = [find_hook(module, f"blocks.1.hook_{n}") for n in ("mlp_out", "resid_post")]
    tokens = torch.arange(12).view(2, 6) + 5
    with edited(module, mid, torch.zeros_like):
        seen = read_activations(module, outputs, tokens)
    mlp_out, resid_post = (seen[p.hook_name] for p in outputs)
    torch.testing.assert_close(resid_post, mlp_out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out"),
        ("blocks.1.hook_resid_mid", "blocks.1.hook_resid_mid"),
        ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_mid"),
        ("blocks.1.hook_resid_pre", "blocks.1.hook_attn_out"),
        ("blocks.1.hook_resid_post", "blocks.1.hook_resid_post"),
    ],
)
def test_an_edit_sees_what_another_hook_holds_in_the_same_forward(
    models, family, source, target
):
    module = models[family]
    points = [find_hook(module, name) for name in (source, target)]
    pairs: list[tuple[Tensor, Tensor]] = []
    batches = [TOKENS, TOKENS.flip(1)[:, :5]]

    def look(x: Tensor, y: Tensor) -> Tensor:
        pairs.append((x.clone(), y.clone()))
        return y

    before = hook_count(module)
    with torch.inference_mode(), edited_from(module, *points, look):
        edited_logits = [module(batch).logits for batch in batches]
    assert hook_count(module) == before
    for batch, (x, y), logits in zip(batches, pairs, edited_logits, strict=True):
        seen = read_activations(module, list(dict.fromkeys(points)), batch)
        assert torch.equal(x, seen[source])
        assert torch.equal(y, seen[target])
        with torch.inference_mode():
            assert torch.equal(logits, module(batch).logits)


def test_an_edit_from_a_later_place_is_refused_and_leaves_no_hook(models):
    module = models["llama"]
    early, late = (find_hook(module, f"blocks.{i}.hook_resid_post") for i in (0, 2))
    before = hook_count(module)
    with (
        pytest.raises(UserError, match=r"resid_post comes before hook_name=blocks\.2"),
        edited_from(module, late, early, lambda _, y: y),
    ):
        module(TOKENS)
    assert hook_count(module) == before


def test_what_goes_into_the_stream_is_told_from_what_is_only_as_wide(tiny_model):
    module = load_skeleton(ModelConfig(name=str(tiny_model)))
    into = {"hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out"}
    into.add("hook_mlp_out")
    for point in list_hooks(module):
        name = point.hook_name.split(".", 2)[2]
        assert writes_to_stream(module, point) == (name in into), point
    assert writes_to_stream(module, find_hook(module, "model.layers.1"))
    assert not writes_to_stream(module, find_hook(module, "model.layers.1.self_attn.q_proj"))
