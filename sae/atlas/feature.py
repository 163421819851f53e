"""`AtlasFeature`: all that an atlas says of one feature, for Python and notebooks."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae.base.notebook import html_table

_SHOWN = 12
"""Contexts that a notebook shows, the strongest first."""
_SHADE = "20,150,140"
"""Red, green and blue behind active tokens; it is see-through, for light and dark notebooks."""


@dataclass(frozen=True, slots=True)
class AtlasFeature:
    """One feature of an atlas.

    A notebook shows its figures, with what chance gives beside each that has such a floor, and
    its strongest contexts, in which a token is the darker the more active the feature is on it.
    """

    label: str
    """What it is called, by people or from the data."""
    values: Mapping[str, Any]
    """Its record of `features.parquet`; `docs/atlas.md` explains the columns."""
    contexts: Sequence[Mapping[str, Any]]
    """Its records of `contexts.parquet`, by group and rank."""
    stability_floor: float | None = None
    """Stability that unrelated directions reach on average, where that is known."""

    def to_pandas(self) -> Any:
        """Return its contexts as a data frame; `docs/atlas.md` explains the columns."""
        import pandas

        return pandas.DataFrame(self.contexts)

    def __repr__(self) -> str:
        """Return one line: its number and label, and how often it fires."""
        density = self.values["density"]
        return f"AtlasFeature({self.values['feature']}, {self.label!r}, fires on {density:.2%})"

    def _repr_html_(self) -> str:
        title = f"Feature {self.values['feature']}: {self.label}"
        facts = html_table(("", "value", "by chance"), self._facts(), title=title)
        fired = [context for context in self.contexts if context["group"] != "silent"]
        lines = [self._shaded(context) for context in fired[:_SHOWN]]
        rest = (
            f"<p>{len(lines)} of {len(self.contexts)} contexts; to_pandas() has them all.</p>"
        )
        return f"{facts}{''.join(lines)}{rest}"

    def _facts(self) -> list[tuple[object, ...]]:
        """Return title, value and what chance gives of whatever the atlas knows of it."""
        of = self.values
        facts: list[tuple[object, ...]] = [
            ("fires on", f"{of['density']:.2%} of the tokens", None),
            ("highest activation", of["max_activation"], None),
            ("tokens", _listed(of["top_tokens"]), None),
        ]
        if of.get("top_logit_tokens"):
            facts.append(("promotes", _listed(of["top_logit_tokens"]), None))
        if of.get("stability") is not None:
            facts.append(("stability", of["stability"], self.stability_floor))
        if of.get("dial_verdict") is not None:
            facts.append(("as a dial", of["dial_verdict"], None))
        if of.get("dial_score") is not None:
            facts.append(("dial score", of["dial_score"], of["dial_score_null"]))
        return facts

    def _shaded(self, context: Mapping[str, Any]) -> str:
        highest = self.values["max_activation"] or 1
        tokens = []
        for token, value in zip(context["tokens"], context["activations"], strict=True):
            text = html.escape(token).replace("\n", "↵")
            share = min(max(value / highest, 0), 1)
            style = f"background:rgba({_SHADE},{0.7 * share:.2f})"
            shown = f'<span style="{style}" title="{value:.3g}">{text}</span>'
            tokens.append(shown if value else text)
        line = '<div style="white-space:pre-wrap;text-align:left;margin:4px 0">'
        return f"{line}{''.join(tokens)}</div>"


def _listed(tokens: Sequence[str]) -> str:
    return ", ".join(map(repr, tokens[:6]))
