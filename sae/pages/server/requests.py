"""What a page may ask for: the JSON of a request, checked key by key."""

import json
import math
import unicodedata
from dataclasses import dataclass
from typing import Any

from sae.base import UserError, nearest, require

_MAX_LABEL = 200
_MAX_STRENGTH = 100.0
_MAX_NEW_TOKENS = 256
_MAX_TEMPERATURE = 5.0
_MAX_SEED = 2**32 - 1
_MAX_FEATURE = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """Which features are active in a text."""

    text: str
    feature: int | None
    """One whose activations are wanted at every token."""


@dataclass(frozen=True, slots=True)
class SteerRequest:
    """What the model writes after a text with one feature turned up or down."""

    text: str
    feature: int
    strength: float
    """In multiples of the feature's highest activation."""
    max_new_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True)
class LabelRequest:
    """A feature's new label; empty for the automatic one."""

    feature: int
    label: str


def body_of(data: bytes) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        UserError: if it is none.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError("the request is not readable as JSON") from error
    if not isinstance(found, dict):
        raise UserError('the request is no JSON object; give one such as {"text": "..."}')
    return found


def read_request(body: dict[str, Any]) -> ReadRequest:
    """The request to read a text.

    Raises:
        UserError: for an unknown key, or a value that is missing, of a wrong type or out of
            range; of the functions below as well.
    """
    _known(body, "text", "feature")
    wanted = body.get("feature") is not None
    feature = _whole(body, "feature", None, 0, _MAX_FEATURE) if wanted else None
    return ReadRequest(_text(body, "text"), feature)


def steer_request(body: dict[str, Any]) -> SteerRequest:
    """The request to steer."""
    _known(body, "text", "feature", "strength", "max_new_tokens", "temperature", "seed")
    return SteerRequest(
        _text(body, "text"),
        _whole(body, "feature", None, 0, _MAX_FEATURE),
        _real(body, "strength", None, -_MAX_STRENGTH, _MAX_STRENGTH),
        _whole(body, "max_new_tokens", 32, 1, _MAX_NEW_TOKENS),
        _real(body, "temperature", 0.7, 0.0, _MAX_TEMPERATURE),
        _whole(body, "seed", 0, 0, _MAX_SEED),
    )


def label_request(body: dict[str, Any]) -> LabelRequest:
    """The request to change a label; it has one line, and nothing that a terminal obeys."""
    _known(body, "feature", "label")
    label = _text(body, "label").strip()
    require(
        len(label) <= _MAX_LABEL,
        f"the label has {len(label)} characters; give {_MAX_LABEL} at most",
    )
    refused = [c for c in label if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    if refused:
        raise UserError(
            f"the label holds a control character, U+{ord(refused[0]):04X}; "
            "write it in one line without"
        )
    return LabelRequest(_whole(body, "feature", None, 0, _MAX_FEATURE), label)


def _known(body: dict[str, Any], *names: str) -> None:
    for key in body:
        if key not in names:
            raise UserError(f"{key[:40]!r} is no key of this request{nearest(key[:40], names)}")


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise UserError(f"{name} is {_shown(value)}; give a string")
    # JSON can name half a character, which no tokenizer takes.
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _whole(body: dict[str, Any], name: str, default: int | None, low: int, high: int) -> int:
    value = body.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise UserError(f"{name} is {_shown(value)}; give a whole number from {low} to {high}")
    return value


def _real(
    body: dict[str, Any], name: str, default: float | None, low: float, high: float
) -> float:
    value = body.get(name, default)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # NaN is in no range.
    if value is None or not number or not low <= value <= high:
        raise UserError(f"{name} is {_shown(value)}; give a number from {low:g} to {high:g}")
    return float(value)


def _shown(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value)[:40]
