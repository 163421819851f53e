"""Steering with some features of a dictionary, each beside its baselines, in doses."""

import time
from functools import partial
from typing import Any

from sae.atlas import Atlas
from sae.base import progress
from sae.dictionary import Dictionary
from sae.models import record_without_weights, recorded_model
from sae.steering.choose import check_chosen, chosen_features
from sae.steering.config import SteerConfig
from sae.steering.kept import Kept
from sae.steering.prepare import features_of, result_of, study_of
from sae.steering.summary import summarise, told_of_limits
from sae.steering.vocabulary import limit_vocabulary


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
    chosen, criterion = chosen_features(config, rows)
    if chosen or config.vocabulary is None:
        check_chosen(rows, chosen, atlas.record.without_logits)
    began = time.perf_counter()
    record = dictionary.record.model or record_without_weights(dictionary.model_name)
    model = recorded_model(record, config.device)
    features = features_of(config, model, rows, chosen)
    study = study_of(config, model, dictionary, atlas, chosen) if features else None
    limited = None
    if config.limits is not None:
        asked = (config.limits, model, dictionary, rows, config.prompts, config.sampling)
        limited = told_of_limits(limit_vocabulary(*asked))
    studied = []
    if study is not None:
        with progress(len(features), "steer", "feature") as bar:
            for feature in features:
                studied.append(kept.once(feature.number, partial(study.of, feature)))
                bar.update(1)
    return {
        "seconds": time.perf_counter() - began,
        "summary": summarise(studied, config.max_cost),
        "features": [
            result_of(config, criterion, dictionary, *both)
            for both in zip(features, studied, strict=True)
        ],
        "vocabulary": limited,
    }
