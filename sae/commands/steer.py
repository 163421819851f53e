"""`sae steer`: some features of a dictionary turned down and up while the model writes."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sae.atlas.atlas import Atlas
from sae.base.errors import UserError, require
from sae.base.files import check_writable, read_json, write_json
from sae.base.progress import progress, say
from sae.base.provenance import digest, plain
from sae.commands.common import check_measured_on, named_dictionary
from sae.dictionary import Dictionary
from sae.models.hooks import locate
from sae.models.load import (
    is_causal,
    record_without_weights,
    recorded_config,
    recorded_model,
)
from sae.steering.choose import RULE, choose_features
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


def run(config: SteerConfig) -> list[dict[str, Any]]:
    """Steer, or reuse results of the same atlas and settings."""
    folder = Path(config.run)
    check_writable(folder / "steering")
    name, dictionary = named_dictionary(folder, config.dictionary)
    path = folder / "steering" / f"{name}.json"
    if not path.exists():
        _check_causal(name, dictionary, config.device)
    atlas = Atlas(folder / "atlas" / name)
    require(
        atlas.folder.exists(),
        f"{atlas.folder} is missing, and strengths are multiples of what it measured; "
        f"run first: sae analyze run={folder} dictionary={name}",
    )
    record = atlas.record
    check_measured_on(dictionary, record.to_json(), f"analyze run={folder} dictionary={name}")
    require(
        not record.imported,
        f"{atlas.folder} was imported, and dashboards do not hold the ids of promoted tokens; "
        f"move it and run: sae analyze run={folder} dictionary={name}",
    )
    settings = [v for k, v in plain(config).items() if k not in ("run", "device", "dictionary")]
    wanted = digest([record.digest, settings])
    if path.exists() and read_json(path).get("digest") == wanted:
        say(f"steer: {path} is there already, reused")
        found: list[dict[str, Any]] = read_json(path)["features"]
        return found
    rows = atlas.features()
    chosen = config.features or choose_features(rows, config.n_features)
    for feature in chosen:
        _check_feature(feature, rows)
    results, seconds = _steer(config, dictionary, [rows[i] for i in chosen])
    rule = "Named on the command line." if config.features else RULE
    results = [{"rule": rule, **result} for result in results]
    write_json(path, {"digest": wanted, "seconds": seconds, "features": results})
    say(f"steer: {path} is written, with {len(results)} features beside their baselines")
    return results


def _check_causal(name: str, dictionary: Dictionary, device: str) -> None:
    record = dictionary.record.model
    if record is not None and not is_causal(recorded_config(record, device)):
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
) -> tuple[list[dict[str, Any]], float]:
    began = time.perf_counter()
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
    return results, time.perf_counter() - began
