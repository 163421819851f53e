"""Texts that a model writes while a feature is turned, or any vector added, at one site."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.base import require
from sae.dictionary import Normalisation
from sae.edits import ALL_BUT_FIRST, Add, Edit
from sae.models import LanguageModel, Site
from sae.steering.arms import random_direction
from sae.writing import (
    Sampling,
    SharedNoise,
    check_length,
    check_writes,
    continued_texts,
    generate,
    prompt_ids,
)


def steered(
    site: Site,
    vectors: Float[Tensor, " d_out"] | Float[Tensor, "sequence d_out"],
    normalisation: Normalisation | None = None,
) -> Edit:
    """Return the edit that adds a vector, or one a sequence, at all positions but the first.

    Args:
        normalisation: what the dictionary of the vectors undoes in what it writes, if anything.
    """
    return Edit(site, Add(vectors, normalisation), ALL_BUT_FIRST)


def perplexity(
    model: LanguageModel,
    prompts: Int[Tensor, "sequence position"],
    continuations: Int[Tensor, "sequence new_position"],
) -> Float[Tensor, " sequence"]:
    """Return exp of the mean −log p of each continuation's tokens, under the unedited model."""
    texts = torch.cat([prompts, continuations], dim=1)
    with torch.inference_mode():
        logits = model.module(texts, use_cache=False).logits[:, prompts.shape[1] - 1 : -1]
    log_probs = logits.float().log_softmax(-1).gather(2, continuations[..., None])
    return torch.exp(-log_probs.squeeze(2).mean(1))


@dataclass(frozen=True, slots=True)
class Continuation:
    """What the model writes after the prompt."""

    text: str
    perplexity: float | None
    """Under the unsteered model; None where it is beyond what a float can say."""


def generate_beside(
    model: LanguageModel,
    site: Site,
    prompt: str,
    directions: tuple[Float[Tensor, " d_out"], Float[Tensor, " d_out"]],
    sampling: Sampling,
    check: Callable[[], None] = lambda: None,
    normalisation: Normalisation | None = None,
) -> tuple[Continuation, ...]:
    """Return what the model writes by itself, then with each vector added at `site`.

    All continuations draw their tokens with the same noise: where a vector changes no logit the
    texts are equal, so what differs is what the vector does. `check` is called before each
    token; whatever it raises ends the writing.

    Raises:
        UserError: if the model cannot write, if a prompt is empty, or if it leaves too little
            room for the tokens to write.
    """
    check_writes(model)
    ids = prompt_ids(model, prompt)
    require(len(model.text_ids(prompt)) > 0, "the prompt is empty; write a beginning")
    check_length(model, ids, sampling)
    vectors = torch.stack([torch.zeros_like(directions[0]), *directions]).to(model.device)
    prompts = ids.expand(len(vectors), -1)
    noise = SharedNoise(sampling, check)
    likeliest = replace(sampling, temperature=0)
    edits = [steered(site, vectors, normalisation)]
    continuations = generate(model, prompts, edits, likeliest, noise=noise)
    texts = continued_texts(model, prompts, continuations)
    perplexities = perplexity(model, prompts, continuations).tolist()
    return tuple(
        Continuation(text, value if math.isfinite(value) else None)
        for text, value in zip(texts, perplexities, strict=True)
    )


def with_baseline(
    direction: Float[Tensor, " d_out"], strength: float, seed: int
) -> tuple[Float[Tensor, " d_out"], Float[Tensor, " d_out"]]:
    """Return the steering vector, from a `unit_dose`, and one of equal norm drawn by `seed`."""
    return strength * direction, strength * random_direction(direction, seed)
