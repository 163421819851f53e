"""Steering with some features of a dictionary, each beside its baselines."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from sae.atlas import Atlas
from sae.base import UserError, progress, require
from sae.dictionary import Dictionary
from sae.models import (
    locate,
    record_without_weights,
    recorded_config,
    recorded_model,
)
from sae.steering.choose import CRITERION, choose_features
from sae.steering.doses import unit_dose
from sae.steering.generate import Sampling
from sae.steering.measure import SteeredFeature, SteeringTask, dose_response


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
        require(
            self.max_new_tokens >= 1, f"max_new_tokens={self.max_new_tokens}; give 1 or more"
        )
        require(self.n_features >= 1, f"n_features={self.n_features}; give 1 or more")
        require(
            self.temperature >= 0, f"temperature={self.temperature} is negative; give 0 or more"
        )


def steer(config: SteerConfig, dictionary: Dictionary, atlas: Atlas) -> dict[str, Any]:
    """Steer with the features that are asked for, or with some that the atlas recommends.

    Returns:
        `seconds` that the model worked, and `features`: texts and figures of each.

    Raises:
        UserError: for a feature that is not there, is dead, or promotes no tokens.
    """
    rows = atlas.features()
    chosen = config.features or choose_features(rows, config.n_features)
    for feature in chosen:
        _check_feature(feature, rows)
    began = time.perf_counter()
    results = _steer(config, dictionary, [rows[i] for i in chosen])
    criterion = "Named on the command line." if config.features else CRITERION
    return {
        "seconds": time.perf_counter() - began,
        "features": [{"criterion": criterion, **result} for result in results],
    }


def check_causal(name: str, dictionary: Dictionary, device: str) -> None:
    """Refuse a dictionary whose model predicts no next token.

    Raises:
        UserError: if it is an encoder.
    """
    record = dictionary.record.model
    if record is not None and not recorded_config(record, device).is_causal():
        raise UserError(
            f"{name} is a dictionary of {record.name}, which predicts no next token, so it "
            "writes nothing to steer; take one of a causal model"
        )


def _check_feature(feature: int, rows: list[dict[str, Any]]) -> None:
    if not 0 <= feature < len(rows):
        raise UserError(
            f"features={feature} is out of range; this dictionary has 0 to {len(rows) - 1}"
        )
    require(
        rows[feature]["max_activation"] > 0, f"features={feature} is dead; choose a live one"
    )
    require(
        "top_logit_ids" in rows[feature],
        "this dictionary does not write to the residual stream, so its features have no top "
        "tokens to measure; steer with one of a hook_resid_* hook",
    )


def _steer(
    config: SteerConfig, dictionary: Dictionary, rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    record = dictionary.record.model or record_without_weights(dictionary.model_name)
    model = recorded_model(record, config.device)
    point = locate(model.module, dictionary.writes[0].place)
    task = SteeringTask(
        prompts=config.prompts,
        strengths=config.strengths,
        sampling=Sampling(
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=config.seed,
        ),
    )
    results = []
    with progress(len(rows), "steer", "feature") as bar:
        for row in rows:
            index = row["feature"]
            direction = unit_dose(dictionary, index, row["max_activation"]).to(model.device)
            feature = SteeredFeature(
                index, direction, row["top_logit_ids"], row["top_logit_tokens"]
            )
            results.append(
                {
                    "feature": index,
                    "top_tokens": row["top_logit_tokens"],
                    "max_activation": row["max_activation"],
                    "norm_at_strength_one": float(torch.linalg.vector_norm(direction)),
                    "prompts": config.prompts,
                    **dose_response(model, point, feature, task),
                }
            )
            bar.update(1)
    return results
