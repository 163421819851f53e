"""Generating and scoring text with a model whose activations are edited."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.edits import Edit, edited
from sae.models import LanguageModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How a continuation is drawn."""

    max_new_tokens: int
    temperature: float
    """0 takes the likeliest token every time."""
    seed: int


ProcessScores = Callable[
    [Int[Tensor, "sequence position"], Float[Tensor, "sequence vocabulary"]],
    Float[Tensor, "sequence vocabulary"],
]
"""Gives new scores for the next token, from the ids so far and the model's own scores."""


def prompt_ids(model: LanguageModel, prompt: str) -> Int[Tensor, " position"]:
    """Return the token ids of a prompt behind the model's beginning token."""
    ids = model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    begin = [] if model.bos_token_id is None else [model.bos_token_id]
    return torch.tensor(begin + ids, device=model.device)


def next_log_probs(
    model: LanguageModel, prompts: Int[Tensor, "sequence position"], edits: Sequence[Edit]
) -> Float[Tensor, "sequence vocabulary"]:
    """Return the log-probabilities of the token after each prompt, under edits."""
    with torch.inference_mode(), edited(model.module, edits):
        logits: Tensor = model.module(prompts, use_cache=False).logits
    return logits[:, -1].float().log_softmax(-1)


def generate(
    model: LanguageModel,
    prompts: Int[Tensor, "sequence position"],
    edits: Sequence[Edit],
    sampling: Sampling,
    *,
    use_cache: bool = True,
    process_scores: ProcessScores | None = None,
) -> Int[Tensor, "sequence new_position"]:
    """Return the ids of `max_new_tokens` tokens that the model writes after each prompt.

    Args:
        edits: in force while it reads the prompts and while it writes.
        sampling: how to draw; the caller's random state is left alone.
        process_scores: gives new scores (sequence, vocabulary) at each step, from the ids so
            far and the model's own scores.
    """
    how: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        # The model's own defaults for top_k and top_p would cut the tail; all tokens count.
        how = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    if process_scores is not None:
        how["logits_processor"] = [process_scores]
    devices = [model.device] if model.device.type == "cuda" else []
    with (
        torch.inference_mode(),
        torch.random.fork_rng(devices),
        edited(model.module, edits),
    ):
        torch.manual_seed(sampling.seed)
        texts: Tensor = model.module.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=sampling.max_new_tokens,
            min_new_tokens=sampling.max_new_tokens,
            use_cache=use_cache,
            pad_token_id=model.tokenizer.pad_token_id or model.tokenizer.eos_token_id,
            **how,
        )
    return texts[:, prompts.shape[1] :]


def perplexity(
    model: LanguageModel,
    prompts: Int[Tensor, "sequence position"],
    continuations: Int[Tensor, "sequence new_position"],
) -> Float[Tensor, " sequence"]:
    """Return how surprising the model, unedited, finds each continuation of its prompt.

    This is the exponential of the mean negative log-probability of the continuation's tokens.
    """
    texts = torch.cat([prompts, continuations], dim=1)
    with torch.inference_mode():
        logits = model.module(texts, use_cache=False).logits[:, prompts.shape[1] - 1 : -1]
    log_probs = logits.float().log_softmax(-1).gather(2, continuations[..., None])
    return torch.exp(-log_probs.squeeze(2).mean(1))
