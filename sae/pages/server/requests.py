"""What a page may ask for: the JSON of a request, checked key by key."""

import json
import math
import unicodedata
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

from sae.base import UserError, nearest, require

_MAX_LABEL = 200
_RANGES: dict[str, tuple[float, float]] = {
    "feature": (0, 2**31 - 1),
    "strength": (-100.0, 100.0),
    "max_new_tokens": (1, 256),
    "temperature": (0.0, 5.0),
    "seed": (0, 2**32 - 1),
}
"""The least and the greatest value of each number; where both are integers, it is one too."""


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """Which features are active in a text."""

    text: str
    feature: int | None = None
    """One whose activations are wanted at every token."""


@dataclass(frozen=True, slots=True)
class SteerRequest:
    """What the model writes after a text with one feature turned up or down."""

    text: str
    feature: int
    strength: float
    """In multiples of the feature's highest activation."""
    max_new_tokens: int = 32
    temperature: float = 0.7
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LabelRequest:
    """A feature's new label in one line; empty for the automatic one."""

    feature: int
    label: str


Request = TypeVar("Request", ReadRequest, SteerRequest, LabelRequest)


def parsed(kind: type[Request], data: bytes) -> Request:
    """Return the request of a kind that the body of an HTTP request holds.

    Raises:
        UserError: if it is no JSON object, for an unknown key, or a value that is missing, of a
            wrong type or out of range.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError("the request is not readable as JSON") from error
    if not isinstance(body, dict):
        raise UserError('the request is no JSON object; give one such as {"text": "..."}')
    known = {f.name: f.default for f in fields(kind)}
    for key in body:
        if key not in known:
            near = nearest(key[:40], known)
            raise UserError(f"{key[:40]!r} is no key of this request{near}")
    given: dict[str, Any] = {}
    for name, default in known.items():
        value = body.get(name, default)
        usual = value is default is not MISSING
        given[name] = value if usual else _checked(name, value)
    return kind(**given)


def _checked(name: str, value: object) -> object:
    if name in _RANGES:
        return _number(name, value, *_RANGES[name])
    if not isinstance(value, str):
        raise UserError(f"{name} is {_shown(value)}; give a string")
    # JSON can name half a character, which no tokenizer takes.
    text = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return _label(text.strip()) if name == "label" else text


def _number(name: str, value: object, low: float, high: float) -> float:
    whole = isinstance(low, int)
    kind, what, form = (int, "whole number", "d") if whole else (int | float, "number", "g")
    # NaN is in no range.
    if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
        bounds = f"from {low:{form}} to {high:{form}}"
        raise UserError(f"{name} is {_shown(value)}; give a {what} {bounds}")
    return value if whole else float(value)


def _label(label: str) -> str:
    require(
        len(label) <= _MAX_LABEL,
        f"the label has {len(label)} characters; give {_MAX_LABEL} at most",
    )
    for character in label:
        # A terminal obeys it, or it breaks the line.
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            raise UserError(
                f"the label holds a control character, U+{ord(character):04X}; "
                "write it in one line without"
            )
    return label


def _shown(value: object) -> str:
    if value is None or value is MISSING:
        return "missing"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value)[:40]
