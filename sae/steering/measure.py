"""Dose and response of one feature, beside a random direction and a plain prompt."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sae.models.load import LanguageModel
from sae.models.site import Site
from sae.steering.edits import random_direction
from sae.steering.generate import Sampling, next_log_probs, perplexity, prompt_ids, write


@dataclass(frozen=True, kw_only=True, slots=True)
class SteeringTask:
    """What to do with every feature."""

    prompts: list[str]
    strengths: list[float]
    """In multiples of the feature's highest activation."""
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class SteeredFeature:
    """A feature and what is known of it from the atlas."""

    index: int
    direction: Tensor
    """Its decoder row times its highest activation, (d_in,): strength 1."""
    top_token_ids: list[int]
    top_tokens: list[str]


@dataclass(frozen=True, slots=True)
class _Condition:
    direction: str
    strength: float | None
    vector: Tensor


def dose_response(
    model: LanguageModel, point: Site, feature: SteeredFeature, task: SteeringTask
) -> dict[str, Any]:
    """Texts and figures at every strength, for the feature and both baselines.

    `logprob_shift` is the change, against the unsteered model, of the log-probability that the
    next token is one of the feature's top tokens, after the prompt. `perplexity` is that of
    the written text under the unsteered model. Both are averaged over prompts (perplexity
    geometrically). Baselines: a random direction of equal norm at every strength, and the
    unsteered model after a sentence that names the feature's top tokens.
    """
    conditions = _conditions(feature, task)
    vectors = torch.stack([c.vector for c in conditions])
    shifts, surprises, samples = [], [], []
    for number, prompt in enumerate(task.prompts):
        ids = prompt_ids(model, prompt)
        hinted_ids = prompt_ids(model, f"{hint(feature.top_tokens)}{prompt}")
        plain = torch.zeros_like(vectors[:1])
        # The unsteered model is a row of the same batch: strength 0 shifts by 0 exactly.
        steered = _top_log_prob(model, point, ids, torch.cat([plain, vectors]), feature)
        hinted = _top_log_prob(model, point, hinted_ids, plain, feature)
        shifts.append(torch.cat([steered[1:], hinted]) - steered[0])
        sampling = replace(task.sampling, seed=task.sampling.seed + number)
        written = torch.cat(
            [
                write(model, point, ids, vectors, sampling),
                write(model, point, hinted_ids, plain, sampling),
            ]
        )
        surprises.append(perplexity(model, ids, written).log())
        texts = model.tokenizer.batch_decode(written)
        samples += [
            {"prompt": prompt, "direction": d, "strength": s, "text": text}
            for (d, s), text in zip(_labels(conditions), texts, strict=True)
        ]
    shift = torch.stack(shifts).mean(0).tolist()
    surprise = torch.stack(surprises).mean(0).exp().tolist()
    measurements = [
        {"direction": d, "strength": s, "logprob_shift": shift[i], "perplexity": surprise[i]}
        for i, (d, s) in enumerate(_labels(conditions))
    ]
    return {"measurements": measurements, "samples": samples}


def hint(top_tokens: list[str]) -> str:
    """The plain-prompt baseline: what one would write instead of steering."""
    words = [token.strip() for token in top_tokens if token.strip()]
    return f"The following text is about {', '.join(words[:5])}.\n\n"


def _conditions(feature: SteeredFeature, task: SteeringTask) -> list[_Condition]:
    random = random_direction(feature.direction, task.sampling.seed + feature.index)
    return [
        _Condition(name, strength, strength * direction)
        for name, direction in (("feature", feature.direction), ("random", random))
        for strength in sorted(task.strengths)
        if name == "feature" or strength != 0
    ]


def _labels(conditions: list[_Condition]) -> list[tuple[str, float | None]]:
    return [*((c.direction, c.strength) for c in conditions), ("prompt", None)]


def _top_log_prob(
    model: LanguageModel,
    point: Site,
    ids: Tensor,
    vectors: Tensor,
    feature: SteeredFeature,
) -> Tensor:
    """Log-probability that the next token is among the feature's top tokens, (row,)."""
    log_probs = next_log_probs(model, point, ids, vectors)
    return log_probs[:, feature.top_token_ids].logsumexp(1)
