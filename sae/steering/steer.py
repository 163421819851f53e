"""Steering with some features of a dictionary, each beside its baselines, in doses."""

import re
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.atlas import Atlas
from sae.base import UserError, progress, require, require_at_least
from sae.dictionary import Dictionary, Normalisation
from sae.edits import Edit
from sae.models import (
    LanguageModel,
    Site,
    locate,
    record_without_weights,
    recorded_model,
)
from sae.steering.generate import (
    Sampling,
    check_length,
    check_writes,
    continued_texts,
    generate,
    next_log_probs,
    perplexity,
    prompt_ids,
    random_direction,
    steered,
    unit_dose,
)
from sae.text.scripts import JOINERS, UNSPACED
from sae.text.token_texts import BYTE

CRITERION = (
    "Of the features active on 0.05% to 2% of the tokens whose ten most promoted tokens are "
    "mostly words (seven or more begin with a space and three letters, or with two characters "
    "of a script without spaces): those whose top "
    "contexts agree most often with their promoted tokens (highest logit_agreement), then "
    "those whose promoted tokens stand out most (highest logit_sharpness); one that shares a "
    "promoted token with a feature already taken is passed over. Should too few be left, other "
    "live features follow in the same order."
)
_DENSITY = (0.0005, 0.02)
_WORD = re.compile(rf" [^\W\d_]{{3}}| ?[{UNSPACED}]{{2}}")
_MIN_WORDS = 7


def _prompts() -> list[str]:
    return ["I went for a walk and", "The most important thing is", "She opened the letter:"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SteerConfig:
    """Turn features of a dictionary up and down while the model writes.

    The texts are measured beside those with a random direction, and with a plain prompt.
    """

    run: str = "runs/default"
    """Folder of the run; results go to `{run}/steering/{dictionary}.json`."""
    dictionary: str | None = None
    """Name of the dictionary, which needs an atlas; may be left out if the run has one
    alone."""
    features: list[int] = field(default_factory=list)
    """Features to steer with; by default some are chosen, and the results say how."""
    n_features: int = 4
    """Number of features to choose, where none are given."""
    strengths: list[float] = field(
        default_factory=lambda: [-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]
    )
    """Doses, as multiples of a feature's highest activation; 0 is the unsteered model."""
    prompts: list[str] = field(default_factory=_prompts)
    """Beginnings of texts, which the model continues."""
    max_new_tokens: int = 32
    """Number of tokens that the model writes."""
    temperature: float = 0.7
    """Temperature of sampling; 0 takes the likeliest token every time."""
    seed: int = 0
    """Seed of sampling and of the random directions."""
    device: str = "auto"
    """Device to compute on: `cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU if there is
    one."""

    def __post_init__(self) -> None:
        require(bool(self.strengths), "strengths is empty; give doses such as [-1,0,1]")
        require(
            bool(self.prompts) and all(p.strip() for p in self.prompts),
            "prompts is empty or holds an empty one; give beginnings to continue",
        )
        require_at_least(self, max_new_tokens=1, n_features=1, temperature=0)

    def idle_keys(self) -> dict[str, str | None]:
        """Return how many to choose, where features are given."""
        return {"n_features": "features=[]"} if self.features else {}

    @property
    def sampling(self) -> Sampling:
        """How the texts are drawn."""
        return Sampling(
            max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=self.seed
        )


def steer(config: SteerConfig, dictionary: Dictionary, atlas: Atlas) -> dict[str, Any]:
    """Steer with the features that are asked for, or with some that the atlas recommends.

    Returns:
        `seconds` that the model worked, and `features`: texts and figures of each.

    Raises:
        UserError: for a feature that is not there, is dead, or promotes no tokens, and where
            there is none to choose from.
    """
    rows = atlas.features()
    chosen = config.features or choose_features(rows, config.n_features)
    _check_chosen(rows, chosen, atlas.record.without_logits)
    criterion = "Named on the command line." if config.features else CRITERION
    began, results = time.perf_counter(), []
    record = dictionary.record.model or record_without_weights(dictionary.model_name)
    model = recorded_model(record, config.device)
    check_writes(model)
    for prompt in config.prompts:
        check_length(model, prompt_ids(model, prompt), config.sampling)
        for told in (prompt_ids(model, _told(rows[i], prompt)) for i in chosen):
            check_length(model, told, config.sampling, "the prompt that tells of a feature")
    site = locate(model.module, dictionary.writes[0].place)
    by = dictionary.writes[0].normalisation
    with progress(len(chosen), "steer", "feature") as bar:
        for row in (rows[i] for i in chosen):
            highest = row["max_activation"]
            direction = unit_dose(dictionary, row["feature"], highest).to(model.device)
            found = {
                "criterion": criterion,
                "feature": row["feature"],
                "top_tokens": row["top_logit_tokens"],
                "max_activation": highest,
                "norm_at_strength_one": float(torch.linalg.vector_norm(direction)),
                # Then in units of each row's own length.
                **({} if by is None else {"normalisation": by.name}),
                "prompts": config.prompts,
            }
            results.append(found | dose_response(config, model, site, direction, row, by))
            bar.update(1)
    return {"seconds": time.perf_counter() - began, "features": results}


def _check_chosen(rows: list[dict[str, Any]], chosen: list[int], why: str | None) -> None:
    """Refuse features that nothing can be measured of, and a choice of none."""
    for feature in chosen:
        require(
            0 <= feature < len(rows),
            f"features={feature} is out of range; this dictionary has 0 to {len(rows) - 1}",
        )
        require(
            rows[feature]["max_activation"] > 0,
            f"features={feature} is dead; choose a live one",
        )
    require(
        any(row["max_activation"] > 0 for row in rows),
        "no feature of this dictionary fired on the text of its atlas, so there is none to "
        "steer with; analyze more text, or train one with fewer dead features",
    )
    require(
        bool(chosen) and all("top_logit_ids" in rows[feature] for feature in chosen),
        "features of this dictionary have no promoted tokens to measure"
        f"{'' if why is None else f' ({why})'}; steer with one of a hook_resid_* hook",
    )


def check_causal(name: str, dictionary: Dictionary) -> None:
    """Refuse a dictionary whose model predicts no next token.

    Raises:
        UserError: if it is an encoder.
    """
    record = dictionary.record.model
    if record is not None and not record.causal:
        raise UserError(
            f"{name} is a dictionary of {record.name}, which predicts no next token, so it "
            "writes nothing to steer; take one of a causal model"
        )


def choose_features(features: list[dict[str, Any]], n: int) -> list[int]:
    """Return the first `n` features by `CRITERION`, of the records of `features.parquet`."""
    live = [f for f in features if f["max_activation"] > 0 and "top_logit_tokens" in f]
    ranked = sorted(live, key=_rank)
    taken: list[int] = []
    used: set[str] = set()
    for row in ranked:
        words = {token.strip().lower() for token in row["top_logit_tokens"]}
        if not words & used:
            taken.append(row["feature"])
            used |= words
    others = [row["feature"] for row in ranked if row["feature"] not in taken]
    return [*taken, *others][:n]


def _rank(row: dict[str, Any]) -> tuple[bool, float, float, int]:
    low, high = _DENSITY
    words = sum(_is_word(token) for token in row["top_logit_tokens"])
    fits = low <= row["density"] <= high and words >= _MIN_WORDS
    return not fits, -row["logit_agreement"], -row["logit_sharpness"], row["feature"]


def _is_word(token: str) -> bool:
    # Marks, as of Hindi's vowels, stand between its letters and are none.
    letters = (c for c in token if c not in JOINERS and unicodedata.category(c)[0] != "M")
    return _WORD.match("".join(letters)) is not None


def dose_response(
    config: SteerConfig,
    model: LanguageModel,
    site: Site,
    direction: Float[Tensor, " d_out"],
    row: dict[str, Any],
    normalisation: Normalisation | None = None,
) -> dict[str, list[dict[str, object]]]:
    """Return texts and figures at every strength, for the feature and both baselines.

    `direction` is the feature's `unit_dose`, `row` its record in `features.parquet`, and
    `normalisation` what its dictionary undoes in what it writes.
    `logprob_shift` is the change, against the unsteered model, of the log-probability that the
    next token is one of the feature's top tokens, after the prompt. `perplexity` is that of
    the continuation under the unsteered model. Both are averaged over prompts (perplexity
    geometrically). Baselines: a random direction of equal norm at every strength, and the
    unsteered model after a sentence that names the feature's top tokens.

    Raises:
        UserError: for a prompt of one token, after which steering has shifted nothing yet.
    """
    drawn = random_direction(direction, config.seed + row["feature"])
    directions = {"feature": direction, "random": drawn}
    doses = [
        (name, strength)
        for name in directions
        for strength in sorted(config.strengths)
        if name == "feature" or strength != 0
    ]
    vectors = torch.stack([strength * directions[name] for name, strength in doses])
    edit = partial(steered, site, normalisation=normalisation)
    responses = [
        _response(model, edit, row, vectors, prompt, replace(config.sampling, seed=seed))
        for seed, prompt in enumerate(config.prompts, config.seed)
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
        for prompt, found in zip(config.prompts, texts, strict=True)
        for (d, s), text in zip(labels, found, strict=True)
    ]
    return {"measurements": measurements, "samples": samples}


def _told(row: dict[str, Any], prompt: str) -> str:
    """Return what one would write instead of steering: the prompt behind a sentence."""
    shown = row["top_logit_tokens"]
    words = [token.strip() for token in shown if token.strip() and not BYTE.search(token)]
    return f"The following text is about {', '.join(words[:5])}.\n\n{prompt}"


def _response(
    model: LanguageModel,
    edit: Callable[[Tensor], Edit],
    row: dict[str, Any],
    vectors: Float[Tensor, "dose d_out"],
    prompt: str,
    sampling: Sampling,
) -> tuple[Float[Tensor, " text"], Float[Tensor, " text"], list[str]]:
    # Shifts, log-perplexities and texts of each dose, then of the prompt baseline.
    ids = prompt_ids(model, prompt)
    require(
        len(ids) >= 2,
        f"the prompt {prompt!r} has one token, and the first is never steered; write more",
    )
    told = prompt_ids(model, _told(row, prompt))[None]
    # The unsteered model is a sequence of the same batch: strength 0 shifts by 0 exactly.
    with_plain = torch.cat([torch.zeros_like(vectors[:1]), vectors])
    prompts = ids.expand(len(with_plain), -1)
    log_probs = [
        next_log_probs(model, prompts, [edit(with_plain)]),
        next_log_probs(model, told, []),
    ]
    continuations = [
        generate(model, prompts[1:], [edit(vectors)], sampling),
        generate(model, told, [], sampling),
    ]
    top = torch.cat(log_probs)[:, row["top_logit_ids"]].logsumexp(1)
    log_perplexity = perplexity(model, prompts, torch.cat(continuations)).log()
    texts = continued_texts(model, prompts[1:], continuations[0])
    texts += continued_texts(model, told, continuations[1])
    return top[1:] - top[0], log_perplexity, texts
