"""Random models of many families, where their hooks are, and reading with plain torch hooks."""

from typing import Any

import torch
from torch import Tensor, nn

from sae.models.hooks import find_site, read_activations

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
# What the MLP reads, and the norm before it.
READ_BY_MLP = {
    family: {
        "mlp.hook_in": (places["hook_mlp_out"][0], "input"),
        "hook_mlp_in": places.get("hook_resid_mid"),
    }
    for family, places in PLACES.items()
}
for _family in ("gemma2", "gemma3"):
    READ_BY_MLP[_family]["mlp.hook_in"] = ("model.layers.{}.mlp", "input")
READ_BY_MLP["bert"]["mlp.hook_in"] = ("encoder.layer.{}.intermediate", "input")
READ_BY_MLP["gpt_neox"]["hook_mlp_in"] = (
    "gpt_neox.layers.{}.post_attention_layernorm",
    "input",
)
NAMES = {family: {**places, **READ_BY_MLP[family]} for family, places in PLACES.items()}
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
VISION_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
# Its picture tower has layers as well.
GEMMA3_SIZES = {
    "text_config": LLAMA_SIZES,
    "vision_config": VISION_SIZES,
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


def copied_in(family: str, hook: str, block: int) -> str | None:
    """The block that puts a copy aside of what stands at a hook."""
    kept = hook == "hook_resid_mid" and family != "bert"
    return f"{BLOCKS[family]}.{block}" if kept else None


def random_models() -> dict[str, Any]:
    """One of each family in `PLACES`."""
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


def hook_count(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def logits(model: Any) -> Tensor:
    """What the model gives in the end: logits, or an encoder's last activations."""
    with torch.no_grad():
        return model(TOKENS)[0]
