"""One feature turned up or down on a prompt that somebody types, beside two baselines."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.base import UserError, require
from sae.models import LanguageModel, Site
from sae.steering.doses import random_direction, steered
from sae.steering.generate import Sampling, generate, perplexity, prompt_ids


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
) -> tuple[Continuation, ...]:
    """Return what the model writes by itself, then with each vector added at `site`.

    All continuations draw their tokens with the same noise: where a vector changes no logit the
    texts are equal, so what differs is what the vector does.

    Args:
        directions: vectors to add at every position but the first.
        check: called before each token; whatever it raises ends the writing.

    Raises:
        UserError: for a model that writes nothing, an empty prompt, or one too long for what is
            to be written.
    """
    require(
        model.record.causal,
        f"{model.record.name} predicts no next token, so it writes nothing to steer; "
        "reading activations works",
    )
    ids = prompt_ids(model, prompt)
    _check_prompt(model, prompt, len(ids), sampling.max_new_tokens)
    vectors = torch.stack([torch.zeros_like(directions[0]), *directions]).to(model.device)
    prompts = ids.expand(len(vectors), -1)
    noise = SharedNoise(sampling, check)
    likeliest = replace(sampling, temperature=0)
    edits = [steered(site, vectors)]
    continuations = generate(model, prompts, edits, likeliest, process_scores=noise)
    texts = model.tokenizer.batch_decode(continuations)
    perplexities = perplexity(model, prompts, continuations).tolist()
    return tuple(
        Continuation(text, value if math.isfinite(value) else None)
        for text, value in zip(texts, perplexities, strict=True)
    )


def with_baseline(
    direction: Float[Tensor, " d_out"], strength: float, seed: int
) -> tuple[Float[Tensor, " d_out"], Float[Tensor, " d_out"]]:
    """Return the steering vector, and one of equal norm in a random direction.

    Args:
        direction: what strength 1 adds, see `unit_dose`.
        seed: of the random direction.
    """
    return strength * direction, strength * random_direction(direction, seed)


def _check_prompt(model: LanguageModel, prompt: str, n_ids: int, max_new_tokens: int) -> None:
    begin = 0 if model.bos_token_id is None else 1
    require(bool(prompt) and n_ids > begin, "the prompt is empty; write a beginning")
    limit = model.max_positions
    if limit is not None and n_ids + max_new_tokens > limit:
        raise UserError(
            f"the prompt has {n_ids:,} tokens and {max_new_tokens:,} are to be written, but "
            f"the model reads {limit:,} at once; shorten the prompt or lower max_new_tokens"
        )


class SharedNoise:
    """Adds the same Gumbel noise to the scores of every sequence: the highest sum is a sample.

    argmax(logits / T + g) with g = -log(-log(u)) is distributed as softmax(logits / T)
    (Gumbel 1954; Maddison et al. 2014, "A* sampling"). Multiplied by T it is the same argmax,
    and none at all where T is 0.
    """

    def __init__(self, sampling: Sampling, check: Callable[[], None]) -> None:
        self.temperature, self.check = sampling.temperature, check
        self.generator = torch.Generator().manual_seed(sampling.seed)

    def __call__(
        self,
        _: Int[Tensor, "sequence position"],
        scores: Float[Tensor, "sequence vocabulary"],
    ) -> Float[Tensor, "sequence vocabulary"]:
        """Return the scores with noise, as a step of `generate` wants them."""
        self.check()
        if self.temperature == 0:
            return scores
        u = torch.rand(scores.shape[1], generator=self.generator, dtype=torch.float64)
        noise = -torch.log(-torch.log(u.clamp_min(1e-300)))
        return scores.float() + self.temperature * noise.to(scores.device, torch.float32)
