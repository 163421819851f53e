"""What steering with some features of an atlas is tried on, and what is told of each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sae.atlas import Atlas
from sae.base import require
from sae.dictionary import Dictionary
from sae.models import LanguageModel
from sae.steering.checks import N_NULLS, prompts_of_checks
from sae.steering.config import SteerConfig
from sae.steering.material import contexts_of, halves, prompts_of, told
from sae.steering.study import Feature, Studied, Study
from sae.steering.written import Desk
from sae.writing import check_length, check_writes, prompt_ids


def study_of(
    config: SteerConfig,
    model: LanguageModel,
    dictionary: Dictionary,
    atlas: Atlas,
    chosen: Sequence[int],
) -> Study:
    """Put together what steering with the chosen features is tried on."""
    return Study(
        desk=Desk.of(model, dictionary),
        contexts=contexts_of(atlas, model, chosen, config.seed),
        prompts=prompts_of(model, config.prompts),
        begins=tuple(halves(config.prompts)[1]),
        sampling=config.sampling,
        max_cost=config.max_cost,
        # The model left alone is a dose too.
        strengths=None if config.strengths is None else (0.0, *config.strengths),
        seed=config.seed,
    )


def features_of(
    config: SteerConfig, model: LanguageModel, rows: list[dict[str, Any]], chosen: Sequence[int]
) -> list[Feature]:
    """Return the chosen features with what belongs to each alone.

    Raises:
        UserError: if the model writes nothing or a prompt is too long for it, or no other
            feature fires that one could be compared with.
    """
    check_writes(model)
    found = [_feature_of(config, model, rows, number) for number in chosen]
    _check_lengths(config, model, found)
    return found


def _feature_of(
    config: SteerConfig, model: LanguageModel, rows: list[dict[str, Any]], number: int
) -> Feature:
    row = rows[number]
    alive = [one["feature"] for one in rows if one["max_activation"] > 0]
    others = [i for i in alive if i != number]
    require(
        bool(others),
        f"feature {number} is the only one that fires, but steering is compared with other "
        "features; use a dictionary with more features that fire",
    )
    draw = np.random.default_rng([config.seed, number])
    drawn = draw.permutation(others)[:N_NULLS].tolist()
    highest = {i: rows[i]["max_activation"] for i in (number, *drawn)}
    plain = tuple(prompt_ids(model, told(row)).tolist())
    reporting, against = halves(config.prompts)[1], told(row, against=True)
    checks = prompts_of_checks(model, config.rewordings, reporting, against)
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


def result_of(
    config: SteerConfig,
    criterion: str,
    dictionary: Dictionary,
    feature: Feature,
    found: Studied,
) -> dict[str, Any]:
    """Return what the results hold of a feature."""
    by = dictionary.writes[0].normalisation
    choosing, reporting = halves(config.prompts)
    return {
        "criterion": criterion,
        "feature": feature.number,
        "top_tokens": feature.row["top_logit_tokens"],
        "max_activation": feature.row["max_activation"],
        # Norms are then in units of each row's own length.
        **({} if by is None else {"normalisation": by.name}),
        "prompts": {"choosing": choosing, "reporting": reporting},
        "max_cost": config.max_cost,
        **found.about,
        "measurements": [trial.to_json() for trial in found.trials],
    }
