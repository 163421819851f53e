"""Tiny random models of every class of transformers that reads tokens."""

from typing import Any

import torch

# By the names that configurations have for them.
SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embed_dim"), 32),
    **dict.fromkeys(("embedding_size", "embedding_dim", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("num_blocks", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "multi_query_group_num"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "hidden_dim"), 48),
    **dict.fromkeys(("moe_intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("shared_expert_intermediate_size", "mlp_hidden_size"), 48),
    **dict.fromkeys(("head_dim", "d_kv", "v_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "mamba_d_head", "mamba_head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "num_experts_per_token"), 2),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 128),
    "rotary_dim": 4,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


# Where the sizes above contradict each other.
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "axk1": {"num_key_value_heads": 8, "num_attention_heads": 8},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_chunk_size": 4},
    "granite": {"residual_multiplier": 0.3},
    "granitemoe": {"residual_multiplier": 0.3},
    "esmc": {"num_key_value_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
    "roc_bert": {"pronunciation_vocab_size": 30, "shape_vocab_size": 30},
}


def tiny(model_type: str, auto: Any, **own: Any) -> Any:
    """Return a random model of a type, as small as its configuration can be made."""
    from transformers import CONFIG_MAPPING

    return tiny_of(tiny_config(CONFIG_MAPPING[model_type], model_type, **own), auto)


def tiny_of(config: Any, auto: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return auto.from_config(config).eval().requires_grad_(False)


def is_tiny(skeleton: torch.nn.Module) -> bool:
    return sum(weight.numel() for weight in skeleton.parameters()) < 4_000_000


def tiny_config(kind: Any, model_type: str = "", **own: Any) -> Any:
    """Return the configuration of a small model, and of the parts that it has."""
    known = {*kind.__annotations__, *vars(kind())}
    sizes = {name: size for name, size in SIZES.items() if name in known}
    if "qk_rope_head_dim" in sizes:
        sizes.pop("head_dim", None)
        sizes["num_key_value_heads"] = 4
    for name, part in kind.sub_configs.items():
        if name.endswith("_config") and part.__name__ != "AutoConfig":
            sizes[name] = tiny_config(part).to_dict()
    return kind(**{**sizes, **OWN.get(model_type, {}), **own})
