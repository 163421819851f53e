"""Dose and response of one feature, beside a random direction and a plain prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.base.errors import require
from sae.edits.edit import Edit
from sae.models.load import LanguageModel
from sae.models.site import Site
from sae.steering.doses import random_direction, steered
from sae.steering.generate import Sampling, generate, next_log_probs, perplexity, prompt_ids


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
    direction: Float[Tensor, " d_out"]
    """What strength 1 adds, see `unit_dose`."""
    top_token_ids: list[int]
    top_tokens: list[str]


@dataclass(frozen=True, slots=True)
class _Condition:
    direction: str
    strength: float
    vector: Float[Tensor, " d_out"]


@dataclass(frozen=True, slots=True)
class _Response:
    """What followed one prompt under every condition and, last, after the plain sentence."""

    shifts: Float[Tensor, " continuation"]
    log_perplexities: Float[Tensor, " continuation"]
    texts: list[str]


def dose_response(
    model: LanguageModel, site: Site, feature: SteeredFeature, task: SteeringTask
) -> dict[str, list[dict[str, object]]]:
    """Return texts and figures at every strength, for the feature and both baselines.

    `logprob_shift` is the change, against the unsteered model, of the log-probability that the
    next token is one of the feature's top tokens, after the prompt. `perplexity` is that of
    the continuation under the unsteered model. Both are averaged over prompts (perplexity
    geometrically). Baselines: a random direction of equal norm at every strength, and the
    unsteered model after a sentence that names the feature's top tokens.

    Raises:
        UserError: for a prompt of one token, after which steering has shifted nothing yet.
    """
    conditions = _conditions(feature, task)
    vectors = torch.stack([c.vector for c in conditions])
    labels = [*((c.direction, c.strength) for c in conditions), ("prompt", None)]
    responses = [
        _response(model, site, feature, vectors, prompt, replace(task.sampling, seed=seed))
        for seed, prompt in enumerate(task.prompts, task.sampling.seed)
    ]
    shifts = torch.stack([r.shifts for r in responses]).mean(0).tolist()
    perplexities = torch.stack([r.log_perplexities for r in responses]).mean(0).exp().tolist()
    return {
        "measurements": [
            {"direction": d, "strength": s, "logprob_shift": shift, "perplexity": value}
            for (d, s), shift, value in zip(labels, shifts, perplexities, strict=True)
        ],
        "samples": [
            {"prompt": prompt, "direction": d, "strength": s, "text": text}
            for prompt, response in zip(task.prompts, responses, strict=True)
            for (d, s), text in zip(labels, response.texts, strict=True)
        ],
    }


def _response(
    model: LanguageModel,
    site: Site,
    feature: SteeredFeature,
    vectors: Float[Tensor, "condition d_out"],
    prompt: str,
    sampling: Sampling,
) -> _Response:
    ids = prompt_ids(model, prompt)
    require(
        len(ids) >= 2,
        f"the prompt {prompt!r} has one token, and the first is never steered; write more",
    )
    told = prompt_ids(model, f"{prompt_baseline(feature.top_tokens)}{prompt}")[None]
    # The unsteered model is a sequence of the same batch: strength 0 shifts by 0 exactly.
    with_plain = steered(site, torch.cat([torch.zeros_like(vectors[:1]), vectors]))
    found = _top_log_prob(model, ids.expand(len(vectors) + 1, -1), [with_plain], feature)
    found_told = _top_log_prob(model, told, [], feature)
    prompts = ids.expand(len(vectors), -1)
    continuations = torch.cat(
        [
            generate(model, prompts, [steered(site, vectors)], sampling),
            generate(model, told, [], sampling),
        ]
    )
    after = ids.expand(len(continuations), -1)
    return _Response(
        torch.cat([found[1:], found_told]) - found[0],
        perplexity(model, after, continuations).log(),
        model.tokenizer.batch_decode(continuations),
    )


def prompt_baseline(top_tokens: list[str]) -> str:
    """Return what one would write before the prompt instead of steering."""
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


def _top_log_prob(
    model: LanguageModel,
    prompts: Int[Tensor, "sequence position"],
    edits: Sequence[Edit],
    feature: SteeredFeature,
) -> Float[Tensor, " sequence"]:
    """Return the log-probability that the next token is among the feature's top tokens."""
    log_probs = next_log_probs(model, prompts, edits)
    return log_probs[:, feature.top_token_ids].logsumexp(1)
