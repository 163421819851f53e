"""Steering with some features of a dictionary, each beside its baselines, in doses."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from sae.atlas import Atlas
from sae.atlas.choice import BY_AGREEMENT, BY_DIAL, choose_by_agreement, choose_dials
from sae.base import UserError, progress, require, require_at_least, say
from sae.dictionary import Dictionary
from sae.edits.copies import Copies
from sae.models import LanguageModel, locate, record_without_weights, recorded_model
from sae.steering.arms import told
from sae.steering.checks import prompts_of_checks
from sae.steering.generate import Sampling, check_length, check_writes, prompt_ids, unit_dose
from sae.steering.kept import Kept
from sae.steering.material import contexts_of, halves, prompts_of
from sae.steering.study import N_NULLS, Feature, Studied, Study
from sae.steering.summary import summarise
from sae.steering.vocabulary import VocabularyConfig, limit_vocabulary, told_of_limits
from sae.steering.written import Desk


def _prompts() -> list[str]:
    return [
        "I went for a walk and",
        "The most important thing is",
        "She opened the letter:",
        "When we arrived at the house,",
        "My brother told me that",
        "In the second half of the year",
        "The article begins with",
        "He looked at the table and saw",
        "One of the reasons is that",
        "After dinner they talked about",
        "The first chapter describes",
        "It was early in the morning when",
    ]


def _reworded() -> list[str]:
    return [
        "What matters more than anything else is",
        "As soon as we got to the building,",
        "During the last six months",
        "He glanced over at the desk and noticed",
        "Once they had eaten, the conversation turned to",
        "The sun was hardly up when",
    ]


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
    strengths: list[float] | None = None
    """Doses, as multiples of a feature's highest activation; 0 is the unsteered model. By
    default nine of both signs, around the dose that costs `max_cost`."""
    max_cost: float = 0.1
    """What a chosen dose may cost: KL from the unsteered model's next-token probabilities on
    neutral text, nats a token. 0.1 is about a tenth more perplexity."""
    prompts: list[str] = field(default_factory=_prompts)
    """Beginnings of texts, which the model continues: on every second one from the first on
    doses are chosen, on the others they are reported."""
    reworded: list[str] = field(default_factory=_reworded)
    """Other wordings of prompts, on which the chosen dose is to hold."""
    vocabulary: str | None = None
    """Text file of words that alone are allowed: several limits on what the model writes are
    compared as well. `n_features=0` compares nothing else."""
    target: float = 0.05
    """Share of tokens outside the vocabulary that a controller is to keep to, on average."""
    n_suppressed: int = 64
    """Number of features to hold at 0, of those that promote tokens outside the vocabulary."""
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
        require(
            self.strengths is None or bool(self.strengths),
            "strengths is empty; give doses such as [-1,0,1], or null for nine of them",
        )
        require(
            bool(self.prompts) and all(p.strip() for p in [*self.prompts, *self.reworded]),
            "prompts is empty, or it or reworded holds an empty one; give beginnings to "
            "continue",
        )
        for strength in self.strengths or []:
            require(math.isfinite(strength), f"strengths={strength}; give finite numbers")
        for feature in self.features:
            require(
                self.features.count(feature) == 1,
                f"features={feature} is there twice; give each once",
            )
        require(0 < self.max_cost < 100, f"max_cost={self.max_cost}; give a number above 0")
        least = 0 if self.vocabulary else 1
        require_at_least(self, max_new_tokens=1, n_features=least, temperature=0)
        if self.limits is not None:
            self.limits.check_temperature(self.temperature)

    def idle_keys(self) -> dict[str, str | None]:
        """Return how many to choose, where features are given, and what limits alone use."""
        idle: dict[str, str | None] = {"n_features": "features=[]"} if self.features else {}
        if self.vocabulary is None:
            idle |= dict.fromkeys(("target", "n_suppressed"), "vocabulary=FILE")
        elif not self.n_features and not self.features:
            idle |= dict.fromkeys(("strengths", "max_cost", "reworded"), "n_features=1")
        return idle

    @property
    def limits(self) -> VocabularyConfig | None:
        """The words that are allowed and how they are kept to, if all are not."""
        if self.vocabulary is None:
            return None
        return VocabularyConfig(
            vocabulary=self.vocabulary, target=self.target, n_features=self.n_suppressed
        )

    @property
    def sampling(self) -> Sampling:
        """How the texts are drawn."""
        return Sampling(
            max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=self.seed
        )


def steer(
    config: SteerConfig, dictionary: Dictionary, atlas: Atlas, kept: Kept
) -> dict[str, Any]:
    """Steer with the features that are asked for, or with some that the atlas recommends.

    What is `kept` of a killed run is not done again.

    Returns:
        `seconds` that the model worked, the `summary` over features, `features`: texts and
        figures of each, and `vocabulary`: limits on words, if any were asked for.

    Raises:
        UserError: for a feature that is not there, is dead, or promotes no tokens, and where
            there is none to choose from; for too few prompts, or too little neutral text.
    """
    rows = atlas.features()
    chosen, criterion = _chosen(config, rows)
    if chosen or config.vocabulary is None:
        _check_chosen(rows, chosen, atlas.record.without_logits)
    began = time.perf_counter()
    record = dictionary.record.model or record_without_weights(dictionary.model_name)
    model = recorded_model(record, config.device)
    check_writes(model)
    features = [_feature(config, model, rows, number) for number in chosen]
    _check_lengths(config, model, features)
    study = _study(config, model, dictionary, atlas, chosen) if features else None
    limited = None
    if config.limits is not None:
        asked = (config.limits, model, dictionary, rows, config.prompts, config.sampling)
        limited = told_of_limits(limit_vocabulary(*asked))
    studied: list[Studied] = []
    if study is not None:
        with progress(len(features), "steer", "feature") as bar:
            for feature in features:
                studied.append(kept.once(feature.number, partial(study.of, feature)))
                bar.update(1)
    return {
        "seconds": time.perf_counter() - began,
        "summary": summarise(studied, config.max_cost),
        "features": [
            _result(config, criterion, dictionary, *both)
            for both in zip(features, studied, strict=True)
        ],
        "vocabulary": limited,
    }


def _chosen(config: SteerConfig, rows: list[dict[str, Any]]) -> tuple[list[int], str]:
    """Return the features to steer with, and how they were chosen."""
    if config.features:
        return config.features, "Named on the command line."
    if any(row.get("dial_verdict") for row in rows):
        chosen, criterion = choose_dials(rows, config.n_features), BY_DIAL
    else:
        chosen, criterion = choose_by_agreement(rows, config.n_features), BY_AGREEMENT
    if 0 < len(chosen) < config.n_features:
        say(f"steer: {len(chosen)} features can be chosen, of n_features={config.n_features}")
    return chosen, criterion


def _study(
    config: SteerConfig,
    model: LanguageModel,
    dictionary: Dictionary,
    atlas: Atlas,
    chosen: Sequence[int],
) -> Study:
    """Put together what steering with the chosen features is tried on."""
    write, read = dictionary.writes[0], dictionary.reads[0]
    copies = Copies(model, locate(model.module, write.place), write.normalisation)
    reads = locate(model.module, read.place)
    desk = Desk(copies, dictionary.to(model.device), reads)
    return Study(
        desk=desk,
        contexts=contexts_of(atlas, model, chosen, config.seed),
        prompts=prompts_of(model, config.prompts),
        begins=tuple(halves(config.prompts)[1]),
        sampling=config.sampling,
        max_cost=config.max_cost,
        # The model left alone is a dose too.
        strengths=None if config.strengths is None else (0.0, *config.strengths),
        seed=config.seed,
    )


def _feature(
    config: SteerConfig, model: LanguageModel, rows: list[dict[str, Any]], number: int
) -> Feature:
    row = rows[number]
    alive = [one["feature"] for one in rows if one["max_activation"] > 0]
    others = [i for i in alive if i != number]
    require(
        bool(others),
        f"feature {number} is the only one that fires, and steering is compared with others; "
        "take a dictionary with more",
    )
    draw = np.random.default_rng([config.seed, number])
    drawn = draw.permutation(others)[:N_NULLS].tolist()
    highest = {i: rows[i]["max_activation"] for i in (number, *drawn)}
    plain = tuple(prompt_ids(model, told(row)).tolist())
    reporting, against = halves(config.prompts)[1], told(row, against=True)
    checks = prompts_of_checks(model, config.reworded, reporting, against)
    return Feature(row, tuple(drawn), highest, plain, checks)


def _check_lengths(
    config: SteerConfig, model: LanguageModel, features: Sequence[Feature]
) -> None:
    """Refuse prompts that leave no room for what is to be written."""
    longest = max((prompt_ids(model, prompt) for prompt in config.prompts), key=len)
    check_length(model, longest, config.sampling)
    for feature in features:
        both = torch.cat([torch.tensor(feature.told), longest.cpu()])
        what = "the prompt that tells of a feature"
        check_length(model, both, config.sampling, what)


def _result(
    config: SteerConfig,
    criterion: str,
    dictionary: Dictionary,
    feature: Feature,
    found: Studied,
) -> dict[str, Any]:
    """Return what the results hold of a feature."""
    highest = feature.row["max_activation"]
    direction = unit_dose(dictionary, feature.number, highest)
    by = dictionary.writes[0].normalisation
    choosing, reporting = halves(config.prompts)
    return {
        "criterion": criterion,
        "feature": feature.number,
        "top_tokens": feature.row["top_logit_tokens"],
        "max_activation": highest,
        "norm_at_strength_one": float(torch.linalg.vector_norm(direction)),
        # Then in units of each row's own length.
        **({} if by is None else {"normalisation": by.name}),
        "prompts": {"choosing": choosing, "reporting": reporting},
        "max_cost": config.max_cost,
        **found.about,
        "measurements": [trial.to_json() for trial in found.trials],
    }


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
