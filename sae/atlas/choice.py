"""Which features to steer with, of those in the records of `features.parquet`."""

import re
import unicodedata
from typing import Any

from sae.text.scripts import JOINERS, UNSPACED

Records = list[dict[str, Any]]

BY_DIAL = (
    "Of the features that are dials (at equal cost, their promoted tokens gain more "
    "probability than with any of the random directions and random features beside them, "
    "and become at least twice as likely): those with the highest dial_score, first those "
    "whose ten most promoted tokens are mostly words (seven or more begin with a space and "
    "three letters, or with two characters of a script without spaces); one that shares a "
    "promoted token with a feature already taken comes behind the other dials. Should too "
    "few be left, weak dials follow in the same way, then what else was scored."
)
BY_AGREEMENT = (
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
_VERDICTS = ("dial", "weak", "none")


def choose_dials(features: Records, n: int) -> list[int]:
    """Return the first `n` features by `BY_DIAL`; fewer where fewer were scored."""
    taken: list[int] = []
    for verdict in _VERDICTS:
        some = [row for row in features if row.get("dial_verdict") == verdict]
        taken += _apart(sorted(some, key=_by_dial), None)
    return taken[:n]


def choose_by_agreement(features: Records, n: int | None = None) -> list[int]:
    """Return the first `n` features, or all that fire, by `BY_AGREEMENT`."""
    live = [f for f in features if f["max_activation"] > 0 and "top_logit_tokens" in f]
    return _apart(sorted(live, key=_by_agreement), n)


def _apart(ranked: Records, n: int | None) -> list[int]:
    """Return features in their order, those that share a promoted token behind the others."""
    taken: dict[int, None] = {}
    used: set[str] = set()
    for row in ranked:
        words = {token.strip().lower() for token in row["top_logit_tokens"]} - {""}
        if not words & used:
            taken[row["feature"]] = None
            used |= words
    others = [row["feature"] for row in ranked if row["feature"] not in taken]
    return [*taken, *others][:n]


def _by_dial(row: dict[str, Any]) -> tuple[bool, float, int]:
    return _n_words(row) < _MIN_WORDS, -row["dial_score"], row["feature"]


def _by_agreement(row: dict[str, Any]) -> tuple[bool, float, float, int]:
    low, high = _DENSITY
    fits = low <= row["density"] <= high and _n_words(row) >= _MIN_WORDS
    return not fits, -row["logit_agreement"], -row["logit_sharpness"], row["feature"]


def _n_words(row: dict[str, Any]) -> int:
    return sum(_is_word(token) for token in row["top_logit_tokens"])


def _is_word(token: str) -> bool:
    # Marks, as of Hindi's vowels, stand between its letters and are none.
    letters = (c for c in token if c not in JOINERS and unicodedata.category(c)[0] != "M")
    return _WORD.match("".join(letters)) is not None
