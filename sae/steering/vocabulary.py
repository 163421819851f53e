"""Texts of allowed words alone: a mask, a controller and features held at 0, side by side."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.base import UserError, progress, require, require_at_least
from sae.dictionary import Dictionary
from sae.edits import Edit, edited
from sae.models import LanguageModel
from sae.steering.limits import GAIN, Controller, Limiter
from sae.steering.repetition import commonest_share, distinct_2, longest_repeat
from sae.steering.suppression import CRITERION, choose_suppressed, divergence, held_at_zero
from sae.steering.words import Words, read_words, token_texts
from sae.writing import (
    Ids,
    Sampling,
    check_length,
    check_writes,
    checked_prompt_ids,
    continued_texts,
    generate,
)

ARMS = ("unlimited", "mask", "controller", "suppressed", "random")
"""What writes: the model by itself, and under each limit. Sequences of a batch, in order."""

FIGURES = {
    "outside": "share of written tokens that are outside",
    "mass_outside": "mean probability of tokens outside, which that share estimates",
    "words_outside": "share of written words that are not allowed",
    "cost": "mean of KL(limited ‖ unlimited) between distributions of the next token after the "
    "same text, the arm's own, at the temperature of sampling, nats a token",
    "log_perplexity": "mean −ln p of written tokens under the unlimited model, nats",
    "distinct_2": "share of pairs of neighbouring tokens that are different",
    "longest_repeat": "tokens of the longest stretch that occurs twice",
    "commonest_share": "share of the commonest token",
}
"""Figures of each text, and what they mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VocabularyConfig:
    """Words that a model is limited to while it writes."""

    vocabulary: str
    """Text file of the allowed words, parted by white space."""
    target: float = 0.05
    """Share of tokens outside that a controller is to keep to, on average."""
    n_features: int = 64
    """Features to hold at 0, of those that promote other tokens."""

    def __post_init__(self) -> None:
        require(
            0 <= self.target <= 1,
            f"target={self.target}; give a share of tokens, from 0 to 1",
        )
        require_at_least(self, n_features=1)

    def check_temperature(self, temperature: float) -> None:
        """Refuse to take the likeliest token every time.

        Raises:
            UserError: for a temperature of 0.
        """
        require(
            temperature > 0,
            f"temperature={temperature:g} always takes the likeliest token, so a limit on "
            "words would have no finite cost; give a temperature above 0",
        )


def limit_vocabulary(
    config: VocabularyConfig,
    model: LanguageModel,
    dictionary: Dictionary,
    features: list[dict[str, Any]],
    prompts: Sequence[str],
    sampling: Sampling,
) -> dict[str, Any]:
    """Write after each prompt under every limit on words, with the same noise, and measure it.

    Which words and tokens are allowed `sae.steering.words` says, and what limits cost
    `sae.steering.limits`. The token that ends a text is never drawn.

    Args:
        config: the words, and how they are kept to.
        model: what writes.
        dictionary: one of the model.
        features: its records in `features.parquet`.
        prompts: beginnings of texts; each has a seed of its own.
        sampling: how tokens are drawn, at a temperature above 0.

    Returns:
        What JSON can hold. `vocabulary`: the file, with `n_words`, of which tokens can spell
        `n_spelled`. `target` and `gain` of the controller, and its `strengths`, nats, at each
        step after each prompt. `suppression`: the criterion and the features of both arms, or
        why there are none, `left_out`. `samples`: what each arm wrote after each prompt.
        `arms`: rows of a table, `FIGURES` of each with a number for each prompt.

    Raises:
        UserError: for words that cannot be read or written, a model that writes nothing, a
            temperature of 0, and prompts that are missing, empty or too long.
    """
    ids = _checked_ids(config, model, prompts, sampling)
    allowed = read_words(config.vocabulary)
    words = Words(allowed, token_texts(model))
    edits, suppression = _suppression(config, model, dictionary, features, words, sampling)
    arms, found = ARMS if edits is not None else ARMS[:3], []
    with progress(len(ids), "vocabulary", "prompt") as bar:
        for i, (prompt, one) in enumerate(zip(prompts, ids, strict=True)):
            limiter = Limiter(
                words,
                [words.begin(prompt)] * len(arms),
                [math.inf if arm == "mask" else 0.0 for arm in arms],
                arms.index("controller"),
                Controller(config.target),
                replace(sampling, seed=sampling.seed + i, to_the_end=True),
            )
            found.append(_written(model, one, edits or [], limiter))
            bar.update(1)
    return {
        "vocabulary": config.vocabulary,
        "n_words": len(allowed),
        "n_spelled": words.n_spelled,
        "target": config.target,
        "gain": GAIN,
        "strengths": [one.strengths for one in found],
        "suppression": suppression,
        "arms": [_row(arm, [one.figures[i] for one in found]) for i, arm in enumerate(arms)],
        "samples": _samples(arms, prompts, found),
    }


def _checked_ids(
    config: VocabularyConfig, model: LanguageModel, prompts: Sequence[str], sampling: Sampling
) -> list[Ids]:
    """Return the ids of each prompt, if a limited text can be written after all."""
    config.check_temperature(sampling.temperature)
    check_writes(model)
    require(bool(prompts), "there are no prompts; give beginnings to continue")
    ids = [checked_prompt_ids(model, prompt) for prompt in prompts]
    for one in ids:
        check_length(model, one, sampling)
    return ids


def _row(arm: str, each: list[dict[str, float]]) -> dict[str, object]:
    """Return a row of the table, with a list of what each prompt has."""
    return {"arm": arm, **{key: [one[key] for one in each] for key in FIGURES}}


def _samples(
    arms: Sequence[str], prompts: Sequence[str], found: "Sequence[_Written]"
) -> list[dict[str, str]]:
    return [
        {"prompt": prompt, "arm": arm, "text": text}
        for prompt, one in zip(prompts, found, strict=True)
        for arm, text in zip(arms, one.texts, strict=True)
    ]


def _suppression(
    config: VocabularyConfig,
    model: LanguageModel,
    dictionary: Dictionary,
    features: Sequence[dict[str, Any]],
    words: Words,
    sampling: Sampling,
) -> tuple[list[Edit] | None, dict[str, object]]:
    """Return the edits of the arms that hold features at 0, and which or why there are none."""
    try:
        both = choose_suppressed(
            features, words.ever_allowed(), config.n_features, sampling.seed
        )
    except UserError as error:
        return None, {"left_out": str(error)}
    moved, names = dictionary.to(model.device), ARMS[3:]
    edits = [
        held_at_zero(model, moved, chosen, ARMS.index(arm), len(ARMS))
        for arm, chosen in zip(names, both, strict=True)
        if chosen
    ]
    return edits, {"criterion": CRITERION, **dict(zip(names, both, strict=True))}


@dataclass(frozen=True, slots=True)
class _Written:
    """What all arms wrote after one prompt."""

    figures: list[dict[str, float]]
    """`FIGURES` of each arm."""
    texts: list[str]
    strengths: list[float]
    """The controller's penalty at each step."""


def _written(
    model: LanguageModel, prompt: Ids, edits: Sequence[Edit], limiter: Limiter
) -> _Written:
    """Write after one prompt in all arms, and measure what they wrote."""
    how, words, start = limiter.sampling, limiter.words, limiter.states[0]
    prompts = prompt.expand(len(limiter.states), -1)
    new = generate(model, prompts, edits, replace(how, temperature=0), noise=limiter)
    plain = _logits(model, prompts, new, [])
    log_p = plain.log_softmax(2).gather(2, new[..., None]).mean((1, 2)).tolist()
    # What edits make of the model's own distribution; limits on scores come on top of it.
    changed, never = _logits(model, prompts, new, edits), model.tokenizer.eos_token_id
    by_edits = [
        divergence(*both, how.temperature, never).mean().item()
        for both in zip(changed, plain, strict=True)
    ]
    texts, figures = continued_texts(model, prompts, new), []
    for i, (ids, text) in enumerate(zip(new.tolist(), texts, strict=True)):
        wrong, n = words.count(start, text)
        numbers = (
            fmean(words.outside(start, ids)),
            fmean(step[i] for step in limiter.outside),
            wrong / max(1, n),
            by_edits[i] + fmean(step[i] for step in limiter.costs),
            -log_p[i],
            distinct_2(ids),
            longest_repeat(ids),
            commonest_share(ids),
        )
        figures.append(dict(zip(FIGURES, numbers, strict=True)))
    return _Written(figures, texts, limiter.strengths)


def _logits(
    model: LanguageModel,
    prompts: Int[Tensor, "sequence position"],
    new: Int[Tensor, "sequence new_position"],
    edits: Sequence[Edit],
) -> Float[Tensor, "sequence new_position vocabulary"]:
    """Return the logits by which each written token was foretold, under edits."""
    with torch.inference_mode(), edited(model.module, edits):
        logits: Tensor = model.module(torch.cat([prompts, new], 1), use_cache=False).logits
    return logits[:, prompts.shape[1] - 1 : -1].float()
