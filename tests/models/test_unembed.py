"""Promoted tokens, against the derivative of the model's own logits by plain autograd."""

from typing import Any

import pytest
import torch
from support.families import VISION_SIZES, random_model
from torch import Tensor, nn

from sae.base.errors import UserError
from sae.models.hooks import find_site
from sae.models.site import Site
from sae.models.unembed import unembedding

D, VOCABULARY = 16, 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": D,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT = {"vocab_size": VOCABULARY, "n_embd": D, "n_layer": 2, "n_head": 2, "n_positions": 64}
NAMED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
FEW = {name: SIZES[name] for name in NAMED}
MPT = {"vocab_size": VOCABULARY, "d_model": D, "n_layers": 2, "n_heads": 2}
OPT = {**FEW, "ffn_dim": 24, "max_position_embeddings": 64, "word_embed_proj_dim": D}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
PLE = {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 4}
# Class, sizes, path of the last block, whether its norm takes the mean off (None: there is no
# norm behind the block), and the cap of the logits.
CASES: list[tuple[str, dict[str, Any], str, bool | None, float | None]] = [
    ("LlamaForCausalLM", SIZES, "model.layers.1", False, None),
    ("GPT2LMHeadModel", GPT, "transformer.h.1", True, None),
    ("GPTNeoXForCausalLM", SIZES, "gpt_neox.layers.1", True, None),
    ("GPTJForCausalLM", {**GPT, "rotary_dim": 8}, "transformer.h.1", True, None),
    ("PhiForCausalLM", SIZES, "model.layers.1", True, None),
    ("GemmaForCausalLM", SIZES, "model.layers.1", False, None),
    ("Gemma2ForCausalLM", SIZES, "model.layers.1", False, 30.0),
    ("Gemma4ForCausalLM", {**SIZES, **PLE}, "model.layers.1", False, None),
    ("Qwen3_5ForCausalLM", SIZES, "model.layers.1", False, None),
    ("CohereForCausalLM", {**SIZES, "logit_scale": 0.25}, "model.layers.1", True, None),
    ("GraniteForCausalLM", {**SIZES, "logits_scaling": 4.0}, "model.layers.1", False, None),
    ("MiniCPM3ForCausalLM", {**SIZES, **LATENT}, "model.layers.1", False, None),
    ("OlmoForCausalLM", SIZES, "model.layers.1", True, None),
    ("Olmo2ForCausalLM", SIZES, "model.layers.1", False, None),
    ("NemotronForCausalLM", SIZES, "model.layers.1", True, None),
    ("MambaForCausalLM", {**FEW, "state_size": 4}, "backbone.layers.1", False, None),
    ("RwkvForCausalLM", {**FEW, "rescale_every": 0}, "rwkv.blocks.1", True, None),
    ("BloomForCausalLM", {**FEW, "n_head": 2}, "transformer.h.1", True, None),
    ("MptForCausalLM", MPT, "transformer.blocks.1", True, None),
    ("OPTForCausalLM", OPT, "model.decoder.layers.1", True, None),
    (
        "OPTForCausalLM",
        {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 8},
        "model.decoder.layers.1",
        None,
        None,
    ),
    ("OpenAIGPTLMHeadModel", GPT, "transformer.h.1", None, None),
    (
        "Gemma3ForConditionalGeneration",
        {"text_config": SIZES, "vision_config": VISION_SIZES, "mm_tokens_per_image": 4},
        "model.language_model.layers.1",
        False,
        None,
    ),
    (
        "LlavaForConditionalGeneration",
        {
            "text_config": {"model_type": "llama", **SIZES},
            "vision_config": {"model_type": "clip_vision_model", **VISION_SIZES},
            "image_token_index": 90,
        },
        "model.language_model.layers.1",
        False,
        None,
    ),
]


def randomised(kind: str, sizes: dict[str, Any]) -> Any:
    """A random model in which no norm is the identity, in float64."""
    model = random_model(kind, sizes)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.copy_(0.3 + torch.rand(parameter.shape, generator=draw))
    return model


def derivative(model: nn.Module, place: str, h: Tensor, cap: float | None) -> Tensor:
    """(d_model, vocabulary): of the logits at the last token by what the module returns."""
    given = h.clone().requires_grad_()

    def instead(_: nn.Module, __: Any, output: Any) -> Any:
        return (given, *output[1:]) if isinstance(output, tuple) else given

    handle = model.get_submodule(place).register_forward_hook(instead)
    with torch.enable_grad():
        logits = model(torch.tensor([[9, 5, 8]]), use_cache=False).logits[0, -1]
        if cap is not None:
            logits = cap * torch.atanh(logits / cap)
    handle.remove()
    rows = [torch.autograd.grad(x, given, retain_graph=True)[0][0, -1] for x in logits]
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize(("kind", "sizes", "block", "centred", "cap"), CASES)
def test_promoted_tokens_are_the_derivative_of_the_models_own_logits(
    kind, sizes, block, centred, cap
):
    model = randomised(kind, sizes)
    matrix = unembedding(model).double()
    model.double()
    draw = torch.Generator().manual_seed(2)
    h = 2 * torch.randn(1, 3, D, generator=draw, dtype=torch.float64) + 0.3
    expected = derivative(model, block, h, cap)
    directions = torch.randn(4, D, generator=draw, dtype=torch.float64)
    spread = torch.tensor(1.0)
    if centred is not None:
        directions, spread = aside(directions, h[0, -1], centred)
    found = directions @ matrix / spread
    torch.testing.assert_close(found, directions @ expected, rtol=1e-4, atol=1e-5)


def aside(directions: Tensor, x: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
    """Directions that leave the spread of `x` as it is, and that spread."""
    x = x - x.mean() if centred else x
    fixed, _ = torch.linalg.qr(torch.stack([x, torch.ones(D, dtype=x.dtype)], dim=1))
    return directions - directions @ fixed @ fixed.t(), x.square().mean().sqrt()


def test_in_a_model_that_norms_its_stream_a_place_inside_a_block_is_before_that_norm():
    model = randomised("OpenAIGPTLMHeadModel", GPT)
    inside = Site("blocks.1.hook_mlp_out", "transformer.h.1.mlp", "output", D, in_stream=True)
    matrix = unembedding(model, inside).double()
    model.double()
    draw = torch.Generator().manual_seed(2)
    out = torch.randn(1, 3, D, generator=draw, dtype=torch.float64)
    seen = []
    norm = model.transformer.h[1].ln_2
    handle = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    expected = derivative(model, inside.module, out, None)
    handle.remove()
    directions, spread = aside(torch.eye(D, dtype=torch.float64), seen[0][0, -1], centred=True)
    torch.testing.assert_close(
        directions @ matrix / spread, directions @ expected, rtol=1e-4, atol=1e-5
    )
    # What the block gives out is normed already, under its name and under its path.
    own = Site("transformer.h.1", "transformer.h.1", "output", D)
    assert torch.equal(unembedding(model, own), unembedding(model))
    assert torch.equal(unembedding(model), model.lm_head.weight.t())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stored_gain_is_taken_to_the_bit_in_every_precision(dtype):
    for kind, one in (("LlamaForCausalLM", 0), ("GemmaForCausalLM", 1)):
        model = randomised(kind, SIZES).to(dtype)
        gain = one + model.model.norm.weight.float()
        expected = gain[:, None] * model.lm_head.weight.float().t()
        assert torch.equal(unembedding(model), expected)


def test_measuring_leaves_no_hook_behind_and_changes_no_logit():
    model = randomised("GPT2LMHeadModel", GPT)
    before = model(torch.tensor([[9, 5, 8]])).logits
    unembedding(model)
    assert torch.equal(model(torch.tensor([[9, 5, 8]])).logits, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", ["model.layers.0", "blocks.0.hook_resid_post"])
def test_a_blocks_own_path_is_as_good_as_its_name(name):
    model = randomised("LlamaForCausalLM", SIZES)
    assert torch.equal(unembedding(model, find_site(model, name)), unembedding(model))
    by_path_alone = Site("model.layers.0", "model.layers.0", "output", D)
    assert torch.equal(unembedding(model, by_path_alone), unembedding(model))


def test_a_place_beside_the_stream_promotes_nothing_and_the_reason_is_given():
    model = randomised("LlamaForCausalLM", SIZES)
    for name in ("blocks.0.attn.hook_z", "model.layers.0.self_attn.q_proj"):
        with pytest.raises(UserError, match=f"{name} does not write into the residual stream"):
            unembedding(model, find_site(model, name))


def test_a_head_that_does_more_than_norm_and_project_is_refused_and_not_guessed_at():
    model = random_model(
        "BertLMHeadModel", {**FEW, "intermediate_size": 24, "is_decoder": True}
    )
    with pytest.raises(UserError, match="more than a norm between its last block and its log"):
        unembedding(model)


def test_a_model_without_a_head_is_refused():
    model = random_model("LlamaModel", SIZES)
    with pytest.raises(UserError, match="no output embedding, so it gives no logits"):
        unembedding(model)


def test_logits_that_are_mixed_behind_the_head_are_refused():
    model = randomised("LlamaForCausalLM", SIZES)
    whole = model.forward

    def shifted(*args: Any, **kwargs: Any) -> Any:
        found = whole(*args, **kwargs)
        found.logits = found.logits.roll(1, dims=-1)
        return found

    model.forward = shifted
    with pytest.raises(UserError, match="does something to its logits other"):
        unembedding(model)
