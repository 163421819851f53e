"""The run's report as one HTML file that needs no network and no server.

Python only fills a template: the data goes in as JSON that the page's own script reads and
shows as text, so nothing found in a data set can act as markup.
"""

import html
import json
import math
import re
from collections import Counter
from importlib.resources import files
from typing import Any

from sae.reporting.front_table import labelled

_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")
"""What could end a script element, end a JavaScript line or fail to encode as UTF-8."""

_SCRIPTS = ("base.js", "charts.js", "front.js", "training.js", "features.js", "page.js")
"""In the order in which they build on each other."""

_SLOT = re.compile(r"\{\{(\w+)\}\}")


def render_page(
    report: dict[str, Any],
    features: list[dict[str, Any]],
    curves: dict[str, list[dict[str, Any]]],
) -> str:
    """The whole page: template, style, script and data.

    Args:
        report: figures of the run; what is missing or empty is left out of the page.
        features: of the chosen dictionary, every one, the dead ones included.
        curves: training metrics by dictionary id; a line need not hold all of them.
    """
    report = report | {"dictionaries": labelled(report.get("dictionaries", []))}
    slots = {
        "title": html.escape(f"{report['model_name']}: {report['hook_name']}"),
        "style": _asset("page.css"),
        "script": "\n".join(map(_asset, _SCRIPTS)),
        "report": _embedded(_plain(report)),
        "curves": _embedded(_plain(curves)),
        "features": _embedded(_compact(features)),
    }
    # One pass, so that a slot's name inside the data is not taken for a slot.
    return _SLOT.sub(lambda slot: slots[slot[1]], _asset("page.html"))


def _asset(name: str) -> str:
    return files("sae.reporting").joinpath(name).read_text(encoding="utf-8")


def _embedded(value: Any) -> str:
    """JSON that is safe inside a script element, whatever strings it holds."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _plain(value: Any) -> Any:
    """`value` with short floats, and null for those that JSON cannot say."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return _short(value, 6) if isinstance(value, float) else value


def _short(value: float | None, digits: int = 4) -> float | None:
    """`value` to so many significant digits: the page shows no more."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def _compact(features: list[dict[str, Any]]) -> dict[str, Any]:
    """Columns instead of objects, and tokens as numbers in one table of strings.

    Thousands of features with five contexts each repeat the same few thousand tokens; the
    commonest get the shortest numbers.
    """
    counts: Counter[str] = Counter()
    for feature in features:
        counts.update(token for token, _ in feature["top_logits"] + feature["bottom_logits"])
        for context in feature["contexts"]:
            counts.update(context["tokens"])
    strings = [token for token, _ in counts.most_common()]
    numbers = {token: number for number, token in enumerate(strings)}
    return {
        "strings": strings,
        "index": [feature["index"] for feature in features],
        **{
            column: [_short(feature[column]) for feature in features]
            for column in ("density", "max", "mean", "agreement")
        },
        "top": [_logits(feature["top_logits"], numbers) for feature in features],
        "bottom": [_logits(feature["bottom_logits"], numbers) for feature in features],
        "contexts": [_contexts(feature, numbers) for feature in features],
    }


def _logits(pairs: list[list[Any]], numbers: dict[str, int]) -> list[float | None]:
    """Token number and logit in turn."""
    return [entry for token, logit in pairs for entry in (numbers[token], _short(logit))]


def _contexts(feature: dict[str, Any], numbers: dict[str, int]) -> list[list[Any]]:
    """Each context as `[sequence, position, peak, token numbers, activations]`.

    Activations are sparse, place and value in turn; a value is 1 to 255 for a share of the
    feature's maximum, finer than a shade that an eye can tell.
    """
    unit = 255 / (feature["max"] or 1.0)
    return [
        [
            context["sequence"],
            context["position"],
            context["peak"],
            [numbers[token] for token in context["tokens"]],
            [
                entry
                for place, act in enumerate(context["acts"])
                if act > 0
                for entry in (place, min(255, max(1, round(act * unit))))
            ],
        ]
        for context in feature["contexts"]
    ]
