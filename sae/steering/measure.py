"""Dose and response of one feature, beside a random direction and a plain prompt."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from sae.base import require
from sae.models import LanguageModel, Site
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
    directions = {
        "feature": feature.direction,
        "random": random_direction(feature.direction, task.sampling.seed + feature.index),
    }
    doses = [
        (name, strength)
        for name in directions
        for strength in sorted(task.strengths)
        if name == "feature" or strength != 0
    ]
    vectors = torch.stack([strength * directions[name] for name, strength in doses])
    responses = [
        _response(model, site, feature, vectors, prompt, replace(task.sampling, seed=seed))
        for seed, prompt in enumerate(task.prompts, task.sampling.seed)
    ]
    shifts, log_perplexities, texts = zip(*responses, strict=True)
    shift = torch.stack(shifts).mean(0).tolist()
    geometric_mean = torch.stack(log_perplexities).mean(0).exp().tolist()
    labels = [*doses, ("prompt", None)]
    measurements: list[dict[str, object]] = [
        {"direction": d, "strength": s, "logprob_shift": shift[i], "perplexity": value}
        for i, ((d, s), value) in enumerate(zip(labels, geometric_mean, strict=True))
    ]
    samples: list[dict[str, object]] = [
        {"prompt": prompt, "direction": d, "strength": s, "text": text}
        for prompt, found in zip(task.prompts, texts, strict=True)
        for (d, s), text in zip(labels, found, strict=True)
    ]
    return {"measurements": measurements, "samples": samples}


def prompt_baseline(top_tokens: list[str]) -> str:
    """Return what one would write before the prompt instead of steering."""
    words = [token.strip() for token in top_tokens if token.strip()]
    return f"The following text is about {', '.join(words[:5])}.\n\n"


def _response(
    model: LanguageModel,
    site: Site,
    feature: SteeredFeature,
    vectors: Float[Tensor, "dose d_out"],
    prompt: str,
    sampling: Sampling,
) -> tuple[Float[Tensor, " text"], Float[Tensor, " text"], list[str]]:
    """Return shifts, log-perplexities and texts of each dose, then of the prompt baseline."""
    ids = prompt_ids(model, prompt)
    require(
        len(ids) >= 2,
        f"the prompt {prompt!r} has one token, and the first is never steered; write more",
    )
    told = prompt_ids(model, prompt_baseline(feature.top_tokens) + prompt)[None]
    # The unsteered model is a sequence of the same batch: strength 0 shifts by 0 exactly.
    with_plain = torch.cat([torch.zeros_like(vectors[:1]), vectors])
    prompts = ids.expand(len(with_plain), -1)
    log_probs = [
        next_log_probs(model, prompts, [steered(site, with_plain)]),
        next_log_probs(model, told, []),
    ]
    continuations = [
        generate(model, prompts[1:], [steered(site, vectors)], sampling),
        generate(model, told, [], sampling),
    ]
    top = torch.cat(log_probs)[:, feature.top_token_ids].logsumexp(1)
    texts = torch.cat(continuations)
    log_perplexity = perplexity(model, prompts, texts).log()
    return top[1:] - top[0], log_perplexity, model.tokenizer.batch_decode(texts)
