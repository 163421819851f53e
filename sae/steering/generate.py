"""Writing and scoring text with a model that is steered at one hook."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae.models.hooks import edited
from sae.models.load import LanguageModel
from sae.models.site import Site
from sae.steering.edits import add_vectors


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How a continuation is drawn."""

    max_new_tokens: int
    temperature: float
    """0 takes the likeliest token every time."""
    seed: int


def prompt_ids(model: LanguageModel, prompt: str) -> Tensor:
    """Token ids of a prompt behind the model's beginning token, (position,)."""
    ids = model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    begin = [] if model.bos_token_id is None else [model.bos_token_id]
    return torch.tensor(begin + ids, device=model.device)


def next_log_probs(model: LanguageModel, point: Site, ids: Tensor, vectors: Tensor) -> Tensor:
    """Log-probabilities after a prompt under each steering vector.

    Args:
        ids: the prompt, (position,).
        vectors: one a row, (row, d_in); zeros leave the model as it is.

    Returns:
        (row, vocabulary).
    """
    rows = ids.expand(len(vectors), -1)
    with torch.inference_mode(), edited(model.module, point, add_vectors(vectors)):
        logits: Tensor = model.module(rows, use_cache=False).logits
    return logits[:, -1].float().log_softmax(-1)


def write(
    model: LanguageModel,
    point: Site,
    ids: Tensor,
    vectors: Tensor,
    sampling: Sampling,
    *,
    use_cache: bool = True,
    change: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """What the model writes after a prompt under each steering vector.

    Args:
        ids: the prompt, (position,).
        vectors: one a row, (row, d_in).
        sampling: how to draw; the caller's random state is left alone.
        change: gives new scores (row, vocabulary) at each step, from the ids so far and the
            model's own.

    Returns:
        New token ids, (row, max_new_tokens).
    """
    rows = ids.expand(len(vectors), -1)
    how: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        # The model's own defaults for top_k and top_p would cut the tail; all tokens count.
        how = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    if change is not None:
        how["logits_processor"] = [change]
    devices = [model.device] if model.device.type == "cuda" else []
    with (
        torch.inference_mode(),
        torch.random.fork_rng(devices),
        edited(model.module, point, add_vectors(vectors)),
    ):
        torch.manual_seed(sampling.seed)
        written: Tensor = model.module.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            max_new_tokens=sampling.max_new_tokens,
            min_new_tokens=sampling.max_new_tokens,
            use_cache=use_cache,
            pad_token_id=model.tokenizer.pad_token_id or model.tokenizer.eos_token_id,
            **how,
        )
    return written[:, len(ids) :]


def perplexity(model: LanguageModel, ids: Tensor, written: Tensor) -> Tensor:
    """How surprising the unsteered model finds each continuation of a prompt, (row,).

    The exponential of the mean negative log-probability of the written tokens.
    """
    rows = torch.cat([ids.expand(len(written), -1), written], dim=1)
    with torch.inference_mode():
        logits = model.module(rows, use_cache=False).logits[:, len(ids) - 1 : -1]
    log_probs = logits.float().log_softmax(-1).gather(2, written[..., None])
    return torch.exp(-log_probs.squeeze(2).mean(1))
