"""Which features to show steering with, when nobody has named any."""

import re
from typing import Any

CRITERION = (
    "Of the features active on 0.05% to 2% of the tokens whose ten most promoted tokens are "
    "mostly words (seven or more begin with a space and three letters): those whose top "
    "contexts agree most often with their promoted tokens (highest logit_agreement), then "
    "those whose promoted tokens stand out most (highest logit_sharpness); one that shares a "
    "promoted token with a feature already taken is passed over. Should too few be left, other "
    "live features follow in the same order."
)
_DENSITY = (0.0005, 0.02)
_WORD = re.compile(r" [^\W\d_]{3}")
_MIN_WORDS = 7


def choose_features(features: list[dict[str, Any]], n: int) -> list[int]:
    """The first `n` features by `CRITERION`, from rows of an atlas's `features.parquet`."""
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
    return not _fits(row), -row["logit_agreement"], -row["logit_sharpness"], row["feature"]


def _fits(row: dict[str, Any]) -> bool:
    low, high = _DENSITY
    words = sum(bool(_WORD.match(token)) for token in row["top_logit_tokens"])
    return low <= row["density"] <= high and words >= _MIN_WORDS
