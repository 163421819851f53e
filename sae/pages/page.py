"""Two pages of HTML that need no network and no server: a run's report, a dictionary's atlas.

Python only fills a template: the data goes in as JSON that the page's own script reads and
shows as text, so nothing found in a data set can act as markup.
"""

import html
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from sae.atlas import AtlasRecord, Example
from sae.pages.embed import embedded, plain

_SHARED = ("elements.js", "tokens.js", "charts.js", "dictionaries.js", "pareto.js")
"""In the order in which they build on each other; what a page has of its own comes after."""
_REPORT = ("training.js", "cards.js", "page.js")
_ATLAS = (
    "data.js",
    "search.js",
    "colours.js",
    "points.js",
    "map.js",
    "map-input.js",
    "density.js",
    "list.js",
    "home.js",
    "contexts.js",
    "panels.js",
    "feature.js",
    "live.js",
    "app.js",
)
"""In the folder `atlas`."""

_SLOT = re.compile(r"\{\{(\w+)\}\}")


def render_page(
    report: dict[str, Any],
    examples: Sequence[Example],
    curves: dict[str, list[dict[str, Any]]],
) -> str:
    """The whole report: template, style, script and data.

    Args:
        report: figures of the run, its dictionaries as `Pareto.for_page` gives them; what is
            missing or empty is left out of the page. `atlas` is the address of the chosen
            dictionary's atlas, as seen from the report.
        examples: a few features of the chosen dictionary.
        curves: training metrics by dictionary id; a line need not hold all of them.
    """
    slots = {
        "title": html.escape(f"{report['model_name']}: {report['hook_name']}"),
        "style": _joined("style.css", "page.css"),
        "script": _joined(*_SHARED, *_REPORT),
        "report": embedded(plain(report)),
        "curves": embedded(plain(curves)),
        "features": embedded(plain([_card(example) for example in examples])),
    }
    return _filled("page.html", slots)


def _card(example: Example) -> dict[str, Any]:
    """Return a feature as `cards.js` reads it: `acts` has place and activation in turn."""
    contexts = []
    for context in example.contexts:
        active = [(place, act) for place, act in enumerate(context.activations) if act > 0]
        acts = [value for pair in active for value in pair]
        contexts.append({"tokens": context.tokens, "peak": context.peak, "acts": acts})
    return {
        "index": example.feature,
        "label": example.label,
        "density": example.density,
        "max": example.max_activation,
        "top_tokens": example.promoted,
        "contexts": contexts,
    }


def atlas_page(record: AtlasRecord) -> str:
    """The page of an atlas: `index.html`, which reads the scripts in `data/` beside it.

    Args:
        record: of the atlas; its dictionary is the title until the data is there.
    """
    slots = {
        "title": html.escape(f"{record.dictionary} · atlas"),
        "style": _joined("style.css", "atlas.css", "atlas-feature.css"),
        "script": _joined(*_SHARED, *(f"atlas/{name}" for name in _ATLAS)),
    }
    return _filled("atlas.html", slots)


def _filled(template: str, slots: dict[str, str]) -> str:
    # One pass, so that a slot's name inside the data is not taken for a slot.
    return _SLOT.sub(lambda slot: slots[slot[1]], _joined(template))


def _joined(*names: str) -> str:
    folder = files("sae.pages")
    return "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names)
