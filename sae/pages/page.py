"""Pages of HTML that need no network: a run's report, a dictionary's atlas, a run's atlases.

Python only fills a template, which names its styles and scripts. Data goes in as JSON that the
page's own script reads and shows as text, so nothing found in a data set can act as markup.
"""

import html
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from sae.atlas import AtlasRecord, Example
from sae.pages.embed import embedded, plain

_SLOT = re.compile(r"\{\{([\w./-]+)\}\}")


def render_page(
    report: dict[str, Any],
    examples: Sequence[Example],
    curves: dict[str, list[dict[str, Any]]],
) -> str:
    """Return the whole report: template, style, script and data.

    Args:
        report: figures of the run, its dictionaries as `Pareto.for_page` gives them; what is
            missing or empty is left out of the page. `atlas` is the address of the chosen
            dictionary's atlas, as seen from the report.
        examples: a few features of the chosen dictionary.
        curves: training metrics by dictionary id; a line need not hold all of them.
    """
    return filled(
        "page.html",
        title=html.escape(f"{report['model_name']}: {report['hook_name']}"),
        report=embedded(plain(report)),
        curves=embedded(plain(curves)),
        features=embedded(plain([_card(example) for example in examples])),
    )


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
    """Return the page of an atlas: `index.html`, which reads the scripts in `data/` beside it.

    Args:
        record: of the atlas; its dictionary is the title until the data is there.
    """
    return filled("atlas.html", title=html.escape(f"{record.dictionary} · atlas"))


def filled(template: str, **slots: str) -> str:
    """Return the text of a template with its slots filled.

    Args:
        template: a file of this folder; `{{name}}` in it is a slot, and `{{name.js}}` stands
            for all of the file beside it.
        slots: what to fill in, as markup.
    """

    def content(slot: re.Match[str]) -> str:
        return slots[slot[1]] if slot[1] in slots else _text(slot[1])

    # One pass, so that a slot's name inside the data is not taken for a slot.
    return _SLOT.sub(content, _text(template))


def _text(name: str) -> str:
    return files("sae.pages").joinpath(name).read_text(encoding="utf-8")
