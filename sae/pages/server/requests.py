"""What the pages of an atlas may ask a server for, and what computes the answers."""

import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

from sae.base import UserError, nearest, require
from sae.dictionary import Dictionary
from sae.edits import Edits
from sae.models import LanguageModel
from sae.pages.server.desk import Dial, dials_of

_MAX_LABEL = 200
_TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Kinds of characters that turn the direction of writing until another one ends it."""
_RANGES: dict[str, tuple[float, float]] = {
    "feature": (0, 2**31 - 1),
    "k": (1, 2**31 - 1),
    "position": (0, 2**31 - 1),
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
    k: int | None = None
    """How many features of a token may be active, of a topk dictionary; its own k if left
    out."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """The prompt of a Patchscope, and how the model goes on from it."""

    prompt: str = ""
    """The prompt, with a placeholder; the usual one if it is empty."""
    placeholder: str = "?"
    max_new_tokens: int = 16
    seed: int = 0

    @property
    def question(self) -> dict[str, Any]:
        """These settings, but for those that are empty."""
        given = ((f.name, getattr(self, f.name)) for f in fields(_Asked))
        return {name: value for name, value in given if value != ""}


@dataclass(frozen=True, kw_only=True, slots=True)
class AskRequest(_Asked):
    """What the model says of a feature whose direction stands in for a token of a prompt."""

    feature: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AskStateRequest(_Asked):
    """What the model says of its own state at one token of a text."""

    text: str
    position: int
    """Which token of the text; the first one is 0."""


@dataclass(frozen=True, slots=True)
class LensRequest:
    """What the model would predict after each token of a text, block by block."""

    text: str


@dataclass(frozen=True, slots=True)
class LabelRequest:
    """A feature's new label in one line; empty for the automatic one."""

    feature: int
    label: str


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """What the model writes with several dials turned."""

    text: str
    dials: tuple[Dial, ...]
    chat: bool = False
    """Whether the text is a question to answer, not a beginning to go on with."""
    max_new_tokens: int = 64
    temperature: float = 0.7
    seed: int = 0


@dataclass(frozen=True, slots=True)
class SaveRequest:
    """The edit file that turns dials."""

    dials: tuple[Dial, ...]


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """The dials that the text of an edit file sets."""

    text: str


Request = TypeVar(
    "Request",
    ReadRequest,
    SteerRequest,
    AskRequest,
    LensRequest,
    AskStateRequest,
    LabelRequest,
    WriteRequest,
    SaveRequest,
    OpenRequest,
)


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
    defaults: dict[str, Any] = {f.name: f.default for f in fields(kind)}
    for key in body:
        if key not in defaults:
            near = nearest(key[:40], defaults)
            raise UserError(f"{key[:40]!r} is no key of this request{near}")
    given = {
        name: value if value is defaults[name] is not MISSING else _checked(name, value)
        for name, value in (defaults | body).items()
    }
    return kind(**given)


def _checked(name: str, value: object) -> Any:
    if name in _RANGES:
        low, high = _RANGES[name]
        whole = isinstance(low, int)
        kinds = [int] if whole else [int, float]
        # Not isinstance(): true would be a number. NaN is in no range.
        if type(value) in kinds and low <= value <= high:  # type: ignore[operator]
            return value if whole else float(value)  # type: ignore[arg-type]
        wanted = f"number from {low:g} to {high:g}"
        if whole:
            wanted = f"whole number from {low} to {high}"
        raise UserError(f"{name} is {_shown(value)}; give a {wanted}")
    if name == "dials":
        return dials_of(value)
    if name == "chat":
        require(type(value) is bool, f"chat is {_shown(value)}; give true or false")
        return value
    if not isinstance(value, str):
        raise UserError(f"{name} is {_shown(value)}; give a string")
    # JSON can name half a character, which no tokenizer takes.
    text = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return _label(text.strip()) if name == "label" else text


def _label(label: str) -> str:
    require(
        len(label) <= _MAX_LABEL,
        f"the label has {len(label)} characters; give {_MAX_LABEL} at most",
    )
    for character in label:
        # A terminal obeys it, or it breaks the line, or turns round what stands beside it.
        require(
            unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")
            and unicodedata.bidirectional(character) not in _TURNS,
            f"the label holds a control character, U+{ord(character):04X}; write it in one "
            "line without",
        )
    return label


def _shown(value: object) -> str:
    if value is None or value is MISSING:
        return "missing"
    return str(value) if isinstance(value, float) else json.dumps(value)[:40]


Read = Callable[[LanguageModel, Dictionary, ReadRequest], dict[str, Any]]
"""Returns the features of a text as the page shows them."""
Steer = Callable[
    [LanguageModel, Dictionary, float, SteerRequest, Callable[[], None]], dict[str, Any]
]
"""Returns texts with and without a feature turned, from its highest activation, of which
strengths are multiples. The last argument is called before each token: it raises to end it."""

Ask = Callable[[LanguageModel, Dictionary, AskRequest, Callable[[], None]], dict[str, Any]]
"""Returns what the model says of a feature, beside controls; the last argument as above."""
ReadLens = Callable[[LanguageModel, LensRequest], dict[str, Any]]
"""Returns a lens of the beginning of a text, as the grid of a page shows it."""
AskState = Callable[
    [LanguageModel, Dictionary, AskStateRequest, Callable[[], None]], dict[str, Any]
]
"""Returns what the model says of its state where a dictionary reads it; see `Ask`."""
Write = Callable[
    [LanguageModel, Sequence[Edits], WriteRequest, Callable[[], None]], Sequence[str]
]
"""Returns what the model writes by itself, and then under each of some edits."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is computed for the pages, by crafts that they do not know."""

    read: Read
    steer: Steer
    write: Write
    ask: Ask
    lens: ReadLens
    ask_state: AskState
