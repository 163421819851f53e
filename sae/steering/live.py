"""One feature turned up or down on a text that somebody types, beside two baselines."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sae.base.errors import require
from sae.models.load import LanguageModel
from sae.models.site import Site
from sae.steering.edits import random_direction
from sae.steering.generate import Sampling, perplexity, prompt_ids, write


@dataclass(frozen=True, slots=True)
class Written:
    """One continuation of the prompt."""

    text: str
    perplexity: float | None
    """Under the unsteered model; None where it is beyond what a float can say."""


def write_beside(
    model: LanguageModel,
    point: Site,
    prompt: str,
    directions: tuple[Tensor, Tensor],
    sampling: Sampling,
    check: Callable[[], None] = lambda: None,
) -> tuple[Written, ...]:
    """What the model writes by itself and with each vector added at `point`.

    The rows draw their tokens by the same chance: where a vector changes no logit the texts are
    equal, so what differs is what the vector does.

    Args:
        directions: vectors (d_out,) to add at every position but the first.
        check: called before each token; whatever it raises ends the writing.

    Returns:
        The plain continuation, then one for each direction.

    Raises:
        UserError: for a model that writes nothing, an empty prompt, one of a single token in a
            model without a beginning token, or one too long for what is to be written.
    """
    require(
        model.causal,
        f"{model.name} predicts no next token, so it writes nothing to steer; "
        "reading activations works",
    )
    ids = prompt_ids(model, prompt)
    _check_prompt(model, prompt, len(ids), sampling.max_new_tokens)
    vectors = torch.stack([torch.zeros_like(directions[0]), *directions]).to(model.device)
    chance = _SharedChance(sampling, check)
    likeliest = replace(sampling, temperature=0)
    written = write(model, point, ids, vectors, likeliest, change=chance)
    texts = model.tokenizer.batch_decode(written)
    surprises = perplexity(model, ids, written).tolist()
    return tuple(
        Written(text, surprise if math.isfinite(surprise) else None)
        for text, surprise in zip(texts, surprises, strict=True)
    )


def with_baseline(direction: Tensor, strength: float, seed: int) -> tuple[Tensor, Tensor]:
    """The steering vector, and one of equal norm in a direction drawn evenly from all.

    Args:
        direction: decoder row times highest activation, (d_out,): strength 1.
        seed: of the random direction.
    """
    return strength * direction, strength * random_direction(direction, seed)


def _check_prompt(model: LanguageModel, prompt: str, n_ids: int, max_new_tokens: int) -> None:
    begin = 0 if model.bos_token_id is None else 1
    require(bool(prompt) and n_ids > begin, "the prompt is empty; write a beginning")
    require(n_ids >= 2, "the prompt has one token, and the first is never steered; write more")
    limit = model.max_positions
    require(
        limit is None or n_ids + max_new_tokens <= limit,
        f"the prompt has {n_ids:,} tokens and {max_new_tokens:,} are to be written, but the "
        f"model reads {limit or 0:,} at once; shorten the prompt or lower max_new_tokens",
    )


class _SharedChance:
    """Adds the same Gumbel noise to every row's scores: the highest sum is a sample.

    argmax(logits / T + g) with g = -log(-log(u)) is distributed as softmax(logits / T)
    (Gumbel 1954; Maddison et al. 2014, "A* sampling"). Multiplied by T it is the same argmax,
    and none at all where T is 0.
    """

    def __init__(self, sampling: Sampling, check: Callable[[], None]) -> None:
        self.temperature, self.check = sampling.temperature, check
        self.generator = torch.Generator().manual_seed(sampling.seed)

    def __call__(self, _: Tensor, scores: Tensor) -> Tensor:
        self.check()
        if self.temperature == 0:
            return scores
        u = torch.rand(scores.shape[1], generator=self.generator, dtype=torch.float64)
        noise = -torch.log(-torch.log(u.clamp_min(1e-300)))
        return scores.float() + self.temperature * noise.to(scores.device, torch.float32)
