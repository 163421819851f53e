"""Pages of HTML that need no network: a run's report, a dictionary's atlas, a run's atlases.

Python only fills a template, which names its styles and scripts. Data goes in as JSON that the
page's own script reads and shows as text, so nothing found in a data set can act as markup.
"""

import html
import json
import math
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from sae.atlas import AtlasRecord, Example

_SLOT = re.compile(r"\{\{([\w./-]+)\}\}")
_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")
"""What could end a script element, end a JavaScript line or fail to encode as UTF-8."""


def render_page(
    report: dict[str, Any], examples: Sequence[Example], curves: dict[str, list[dict[str, Any]]]
) -> str:
    """Return the whole report: template, style, script and data.

    What is missing or empty is left out of the page. In the report `atlases` are the
    addresses of atlases as seen from it, by dictionary; the rest is as in `Pareto.for_page`.
    Examples are features of the chosen dictionary, curves training metrics by dictionary id.
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
        active = [pair for pair in enumerate(context.activations) if pair[1] > 0]
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
    """Return `index.html` of an atlas, which reads the scripts in `data/` beside it."""
    return filled("atlas.html", title=html.escape(f"{record.dictionary} · atlas"))


def filled(template: str, **slots: str) -> str:
    """Return the text of a template, a file of this folder, with its slots filled with markup.

    `{{name}}` in it is a slot, and `{{name.js}}` stands for all of the file beside it.
    """

    def content(name: str) -> str:
        if name in slots:
            return slots[name]
        return files("sae.pages").joinpath(name).read_text(encoding="utf-8")

    # One pass, so that a slot's name inside the data is not taken for a slot.
    return _SLOT.sub(lambda slot: content(slot[1]), content(template))


def embedded(value: Any) -> str:
    """JSON that is safe inside a script element, whatever strings it holds."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def embedded_fast(value: Any) -> str:
    """Return JSON as `embedded` does, of much that holds no broken Unicode and no NaN."""
    import orjson

    text = orjson.dumps(value).decode()
    for unsafe in "<>&\u2028\u2029":
        text = text.replace(unsafe, f"\\u{ord(unsafe):04x}")
    return text


def plain(value: Any) -> Any:
    """`value` with short floats, and null for those that JSON cannot say."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
