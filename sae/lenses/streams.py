"""The residual stream of a text at every depth, and what the model's own tail says of it."""

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.base import require
from sae.models import LanguageModel, ModelConfig, Site, load_skeleton, load_tokenizer
from sae.models.calls import without_cache
from sae.models.positions import usable_positions
from sae.models.probe import probe
from sae.models.resume import n_blocks, resume, seen_before

EMBEDDING = -1
"""Number of the layer before the first block: that after block N has the number N."""


@dataclass(frozen=True, slots=True)
class Streams:
    """What went through a model on one text."""

    hidden: tuple[Float[Tensor, "sequence position d_model"], ...]
    """The stream before the first block, then what each block returned."""
    logits: Float[Tensor, "sequence position vocabulary"]
    """The model's own."""


def read_streams(module: nn.Module, tokens: Int[Tensor, "sequence position"]) -> Streams:
    """Run a model once, and return its stream at every depth, with its logits."""
    blocks = range(n_blocks(module) + 1)
    with ExitStack() as hooks, torch.inference_mode():
        seen = [hooks.enter_context(seen_before(module, block)) for block in blocks]
        logits = module(tokens, **without_cache(module)).logits
    return Streams(tuple(one[0] for one in seen), logits)


def lens_logits(
    module: nn.Module,
    hidden: Float[Tensor, "sequence position d_model"],
    tokens: Int[Tensor, "sequence position"],
) -> Float[Tensor, "sequence position vocabulary"]:
    """Return the logits that the model's own tail makes of a stream, whatever block it is of.

    Of the stream after the last block they are the model's own, to the bit.

    Raises:
        UserError: if the model cannot be run from behind its last block.
    """
    with torch.inference_mode():
        found: Tensor = resume(module, n_blocks(module), hidden, tokens).logits
    return found


def layer_of(module: nn.Module, site: Site) -> int | None:
    """Return the layer whose stream a site holds; None if it is no stream between blocks.

    What block 3 is given is what block 2 returns, so both are layer 2.
    """
    blocks = probe(module).blocks
    if site.module not in blocks:
        return None
    return blocks.index(site.module) - (site.side == "input")


def hook_of(layer: int) -> str:
    """Return TransformerLens's name of the stream of a layer."""
    if layer == EMBEDDING:
        return "blocks.0.hook_resid_pre"
    return f"blocks.{layer}.hook_resid_post"


def check_before_loading(config: ModelConfig, text: str) -> nn.Module:
    """Refuse a model or a text that a lens cannot read, before weights are loaded.

    Returns:
        The model without its weights.

    Raises:
        UserError: for an encoder, a model without one stream of blocks, an empty text, or one
            longer than the model reads.
    """
    _check_causal(config.name, config.is_causal())
    skeleton = load_skeleton(config)
    found = probe(skeleton)
    # What does not run on made-up weights is asked again when it is loaded.
    require(
        bool(found.blocks) or found.failure is not None,
        f"{type(skeleton).__name__} has no blocks that pass on a single stream of "
        "activations, so a lens has nothing to read; choose another model=...",
    )
    ids = load_tokenizer(config)(text, add_special_tokens=False, verbose=False)["input_ids"]
    _check_length(len(ids), len(ids), usable_positions(skeleton))
    return skeleton


def checked_ids(
    model: LanguageModel, text: str, n_tokens: int | None = None
) -> Int[Tensor, " position"]:
    """Return the token ids of a text, with what the model has before it.

    No more than `n_tokens` are of the text, if that is given.

    Raises:
        UserError: for a model that predicts no next token, an empty text, or one longer than
            the model reads.
    """
    _check_causal(model.record.name, model.record.causal)
    ids, n_text = torch.from_numpy(model.prompt_ids(text)).long(), len(model.text_ids(text))
    if n_tokens is not None:
        ids = ids[: len(ids) - n_text + min(n_text, n_tokens)]
    _check_length(n_text, len(ids), model.max_positions)
    return ids.to(model.device)


def _check_causal(name: str, causal: bool) -> None:
    require(
        causal,
        f"{name} predicts no next token, so a lens has nothing to show; choose a causal "
        "language model",
    )


def _check_length(n_text: int, n: int, limit: int | None) -> None:
    require(n_text > 0, "the text is empty; write something for the model to read")
    require(
        limit is None or n <= limit,
        f"the text has {n:,} tokens, but the model reads only {limit or 0:,} at once; give "
        "a shorter text",
    )
