"""Where families of models keep their blocks, and which hooks a block has.

TransformerLens's names on the left; on the right a module inside the block, and its side.
"""

from collections.abc import Container, Mapping

from torch import nn

from sae.models.site import Side

Places = Mapping[str, tuple[str, Side]]
"""From the name of a hook inside a block to (module path inside the block, side)."""

# Llama, Gemma, Qwen, Mistral and most others. What stands in the middle of the residual stream
# is the input of the norm before the MLP, where a family has one.
_PRE_NORM: Places = {
    "hook_resid_pre": ("", "input"),
    "hook_resid_post": ("", "output"),
    "hook_attn_out": ("self_attn", "output"),
    "attn.hook_z": ("self_attn.o_proj", "input"),
    "hook_mlp_out": ("mlp", "output"),
    "mlp.hook_post": ("mlp.down_proj", "input"),
    "hook_resid_mid": ("post_attention_layernorm", "input"),
}
# Families that norm what attention and MLP add (Gemma 2, OLMo 2): what is added is the
# norm's output, and `post_attention_layernorm` is that norm, not the one before the MLP.
_NORMED_ADDENDS: Places = {
    "hook_attn_out": ("post_attention_layernorm", "output"),
    "hook_mlp_out": ("post_feedforward_layernorm", "output"),
}
_GPT2: Places = {
    "hook_resid_pre": ("", "input"),
    "hook_resid_post": ("", "output"),
    "hook_attn_out": ("attn", "output"),
    "attn.hook_z": ("attn.c_proj", "input"),
    "hook_mlp_out": ("mlp", "output"),
    "mlp.hook_post": ("mlp.c_proj", "input"),
    "hook_resid_mid": ("ln_2", "input"),
}
_GPT_NEOX: Places = {
    "hook_resid_pre": ("", "input"),
    "hook_resid_post": ("", "output"),
    "hook_attn_out": ("attention", "output"),
    "attn.hook_z": ("attention.dense", "input"),
    "hook_mlp_out": ("mlp", "output"),
    "mlp.hook_post": ("mlp.dense_4h_to_h", "input"),
}
# The stream itself goes through a norm after each addition, so a block's output is normed, and
# `hook_resid_post` stands before that norm.
_POST_NORM_MID = "attention.output.LayerNorm"
_BERT: Places = {
    "hook_resid_pre": ("", "input"),
    "hook_resid_post": ("output.LayerNorm", "input"),
    "hook_normalized_resid_post": ("", "output"),
    "hook_attn_out": ("attention.output.dense", "output"),
    "attn.hook_z": ("attention.output.dense", "input"),
    "hook_mlp_out": ("output.dense", "output"),
    "mlp.hook_post": ("output.dense", "input"),
    "hook_resid_mid": (_POST_NORM_MID, "input"),
}
# By a module that only blocks of the family have; `_PRE_NORM` where there is none of these.
_FAMILIES = {"output.LayerNorm": _BERT, "attention.dense": _GPT_NEOX, "attn": _GPT2}

_BLOCKS = ("layers", "h", "encoder.layer", "language_model.layers")


def block_list(module: nn.Module, modules: Mapping[str, nn.Module]) -> str | None:
    """Path of the model's list of blocks, below a head or without one."""
    head = getattr(module, "base_model_prefix", "")
    paths = [f"{prefix}{path}" for prefix in ("", f"{head}.") for path in _BLOCKS]
    return next((p for p in paths if isinstance(modules.get(p), nn.ModuleList)), None)


def block_places(block: str, modules: Container[str]) -> Places:
    """Return the hooks of the block at path `block`, by its family; some blocks lack some."""
    marks = (places for mark, places in _FAMILIES.items() if f"{block}.{mark}" in modules)
    places = next(marks, _PRE_NORM)
    if f"{block}.post_feedforward_layernorm" not in modules:
        return places
    pre_norm = "pre_feedforward_layernorm"
    mid = pre_norm if f"{block}.{pre_norm}" in modules else "mlp"
    return {**places, **_NORMED_ADDENDS, "hook_resid_mid": (mid, "input")}


def copied_at_mid(hook_name: str, module: str) -> bool:
    """Whether the place is the middle of a stream of which the block has put a copy aside.

    So it is before an MLP with a norm of its own; after BERT's norm the stream is what went
    through it.
    """
    return hook_name.endswith("hook_resid_mid") and not module.endswith(_POST_NORM_MID)
