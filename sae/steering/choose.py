"""The features to steer with: those that are named, or the best that an atlas knows."""

from typing import Any

from sae.atlas.choice import BY_AGREEMENT, BY_DIAL, choose_by_agreement, choose_dials
from sae.base import UserError, require, say
from sae.dictionary import Dictionary
from sae.steering.config import SteerConfig


def chosen_features(config: SteerConfig, rows: list[dict[str, Any]]) -> tuple[list[int], str]:
    """Return the features to steer with, and how they were chosen."""
    if config.features:
        return config.features, "Named on the command line."
    if any(row.get("dial_verdict") for row in rows):
        chosen, criterion = choose_dials(rows, config.n_features), BY_DIAL
    else:
        chosen, criterion = choose_by_agreement(rows, config.n_features), BY_AGREEMENT
    if 0 < len(chosen) < config.n_features:
        say(
            f"steer: {len(chosen)} features can be chosen, fewer than "
            f"n_features={config.n_features}"
        )
    return chosen, criterion


def check_chosen(rows: list[dict[str, Any]], chosen: list[int], why: str | None) -> None:
    """Refuse features that nothing can be measured of, and a choice of none."""
    for feature in chosen:
        require(
            0 <= feature < len(rows),
            f"features={feature} is out of range; this dictionary has 0 to {len(rows) - 1}",
        )
        require(
            rows[feature]["max_activation"] > 0,
            f"features={feature} never fired; choose another one",
        )
        require(
            rows[feature].get("decoder_norm") != 0,
            f"features={feature} has a direction of length zero; choose another one",
        )
    require(
        any(row["max_activation"] > 0 for row in rows),
        "no feature of this dictionary fired on the text of its atlas, so there is none to "
        "steer with; analyze more text, or train a dictionary with fewer dead features",
    )
    require(
        bool(chosen) and all("top_logit_ids" in rows[feature] for feature in chosen),
        "the features of this dictionary have no promoted tokens that could be "
        f"measured{'' if why is None else f' ({why})'}; steer with a dictionary of a "
        "hook_resid_* hook",
    )


def check_causal(name: str, dictionary: Dictionary) -> None:
    """Refuse a dictionary whose model predicts no next token.

    Raises:
        UserError: if it is an encoder.
    """
    record = dictionary.record.model
    if record is not None and not record.causal:
        raise UserError(
            f"{name} is a dictionary of {record.name}, which predicts no next token, so "
            "there is nothing to steer; use a dictionary of a causal model"
        )
