"""`EditRecord`: one edit as data, as a file or Python says it.

Nothing here knows a model or a dictionary: `sae.edits.plan` brings them together.
"""

import math
from dataclasses import dataclass, field, fields

from torch import Tensor

from sae.base import require
from sae.edits.modes import MODES, Mode, Target
from sae.edits.positions import EVERYWHERE, Span

TARGETS: dict[str, Target] = {
    "feature": "feature",
    "features": "feature",
    "direction": "direction",
    "token": "direction",
    "head": "head",
}
"""Keys that say what is edited, of which an edit has exactly one."""
UNITS = ("raw", "max_act", "quantile:Q", "std", "residual_norm")
EVERY_WRITER = "every_writer"
"""In a hook's place: where the stream begins, and all that attention and MLPs add to it."""
BOS = "bos"
"""Stands for the tokens that a model has before every text, or else for the first token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WhereRecord:
    """At which tokens an edit is made."""

    prompt: tuple[Span, ...] = EVERYWHERE
    """Ranges of the prompt, half-open, counted from its first token; below 0 from its end."""
    generated: tuple[Span, ...] = EVERYWHERE
    """Ranges of what is written after it, counted from the first token that is written."""
    but: tuple[Span | str, ...] = (BOS,)
    """`except` in a file: ranges of both together that are left out, and `bos`."""
    sequences: tuple[tuple[Span, ...], ...] | None = None
    """Ranges of both together, for each sequence of a batch; all else of it stays as it is."""

    def to_plain(self) -> dict[str, object]:
        """Return what a file says."""
        found: dict[str, object] = {"prompt": _plain_spans(self.prompt)}
        found["generated"] = _plain_spans(self.generated)
        found["except"] = [s if isinstance(s, str) else list(s) for s in self.but]
        if self.sequences is not None:
            found["sequences"] = [_plain_spans(spans) for spans in self.sequences]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class WhenRecord:
    """A gate: what another feature has to be at a token for an edit to be made there."""

    feature: int
    above: float | None = None
    """Code that it has to exceed, in the dictionary's own unit."""
    below: float | None = None
    """Code that it has to stay under."""
    dictionary: str | None = None
    """Folder of its dictionary; that of the edit if left out."""

    def to_plain(self) -> dict[str, object]:
        """Return what a file says."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class EditRecord:
    """One edit: what is changed in a model, how, by how much, at which tokens and when.

    Make one with `sae.edit(...)`, which checks it and names every mistake.
    """

    do: str
    """What is done, a name of `MODES`."""
    at: str | None = None
    """Hook at which activations change; that which the dictionary writes if left out."""
    dictionary: str | None = None
    """Folder of the dictionary, or `ORG/NAME:FOLDER` on the Hub."""
    feature: int | None = None
    features: tuple[int, ...] | None = None
    """Several, each of which is edited by the same amount."""
    direction: "str | Tensor | None" = None
    """A file of one vector, `.npy` or `.safetensors`; from Python also the vector itself."""
    token: str | None = None
    """A token, whose direction in the residual stream is the one that raises its logit."""
    head: int | None = None
    """Number of an attention head, at a hook `attn.hook_z`."""
    by: "float | tuple[float, ...] | Tensor | None" = None
    """How much: one number, or one for each sequence of a batch."""
    unit: str = "raw"
    """`raw` is the dictionary's own unit of the feature's code, or the length of a vector."""
    where: WhereRecord = field(default_factory=WhereRecord)
    when: WhenRecord | None = None
    cache: str | None = None
    """Cache in which units are measured; that of the dictionary's run if left out."""
    digest: str | None = None
    """Digest of the dictionary, or of the direction's file, that is meant and no other."""

    @property
    def mode(self) -> Mode:
        """The mode that `do` names."""
        return MODES[self.do]

    @property
    def target(self) -> Target:
        """What kind of thing is edited."""
        key = next(key for key in TARGETS if getattr(self, key) is not None)
        return TARGETS[key]

    @property
    def chosen(self) -> tuple[int, ...]:
        """The features that are edited."""
        if self.features is not None:
            return self.features
        return () if self.feature is None else (self.feature,)

    def to_plain(self) -> dict[str, object]:
        """Return what a file says of it, without what goes without saying.

        Raises:
            UserError: if a number or a vector of it is a tensor, which a file cannot hold.
        """
        found: dict[str, object] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if value is None or (f.name == "unit" and (value == "raw" or self.by is None)):
                continue
            require(
                not isinstance(value, Tensor),
                f"{f.name} of an edit is a tensor, which an edit file cannot hold; "
                f"{_SAVED.get(f.name, '')}",
            )
            if f.name in ("where", "when"):
                value = value.to_plain()
            found[f.name] = list(value) if isinstance(value, tuple) else value
        return found


def quantile_of(unit: str) -> float | None:
    """Return q of a unit `quantile:q`; None of any other."""
    word, _, number = unit.partition(":")
    try:
        q = float(number) if word == "quantile" else math.nan
    except ValueError:
        return None
    return q if 0 < q <= 1 else None


_SAVED = {
    "direction": "write it with numpy.save and give the file",
    "by": "give numbers",
}


def _plain_spans(spans: tuple[Span, ...]) -> object:
    if spans == EVERYWHERE:
        return "all"
    if not spans:
        return "none"
    listed = [list(span) for span in spans]
    return listed[0] if len(listed) == 1 else listed
