"""The front of a run: its evaluated dictionaries as table, picture and page."""

import math
from pathlib import Path
from typing import Any

from sae.base.errors import require
from sae.base.files import read_json, write_json, write_text
from sae.base.progress import say
from sae.base.provenance import versions
from sae.commands.common import dictionary_names
from sae.dictionary.files import load_dictionary, read_record
from sae.reporting.front import draw_front
from sae.reporting.front_table import (
    as_csv,
    as_text,
    recommended,
    rule,
    trained_architecture,
)
from sae.reporting.page import render_page
from sae.training.loggers import read_metrics

_CURVE_POINTS = 200
_DENSITIES = "plots/feature_density_line_chart"
_DENSITY_COLUMNS = 40


def write_front(
    run: Path, max_l0: float, names: list[str] | None = None, *, page: bool = True
) -> dict[str, Any]:
    """Write `front.json`, `.csv` and `.png` over evaluated dictionaries of a run, and the page.

    The page is left alone where a demo, which shows more on it, has written its own.

    Args:
        run: folder of the pipeline, with figures in `evals`.
        max_l0: up to which the most faithful dictionary is recommended.
        names: of the dictionaries to compare; by default all that were evaluated.
        page: whether to write `report.html` and `report.json` as well.

    Returns:
        What is in `front.json`: `rows`, the id `recommended`, the `rule` and what they are of;
        each row has its histogram of densities besides.

    Raises:
        UserError: if none was evaluated.
    """
    evaluated = {path.stem for path in (run / "evals").glob("*.json")}
    wanted = dictionary_names(run) if names is None else names
    found = [_row(run, name) for name in wanted if name in evaluated]
    rows = [row for row in found if row is not None]
    require(bool(rows), f"{run} has no evaluated dictionaries; run: sae eval run={run}")
    rows.sort(key=lambda row: (trained_architecture(row), row["hook_name"], -row["l0"]))
    chosen = recommended(rows, max_l0)
    dictionary = load_dictionary(run / "dictionaries" / chosen)
    front = {
        "run": str(run),
        "model_name": dictionary.record.model_name or "a model",
        "hook_name": next(row["hook_name"] for row in rows if row["id"] == chosen),
        "d_in": dictionary.d_in,
        "max_l0": max_l0,
        "recommended": chosen,
        "rule": rule(rows, max_l0),
        "rows": rows,
    }
    lean = [{k: v for k, v in row.items() if k != "density_histogram"} for row in rows]
    write_json(run / "front.json", front | {"rows": lean})
    write_text(run / "front.csv", as_csv(rows, chosen))
    marked = chosen if len(rows) > 1 else None
    draw_front(rows, run / "front.png", chosen=marked, max_l0=max_l0)
    if page:
        _write_page(run, front)
    return front


def _row(run: Path, name: str) -> dict[str, Any] | None:
    """The dictionary's figures, and how long it was trained where that is known.

    None if it was trained further since it was measured.
    """
    figures: dict[str, Any] = read_json(run / "evals" / f"{name}.json")
    training = read_record(run / "dictionaries" / name).training
    now = training and training.digest
    if figures.get("training_digest", now) != now:
        say(f"front: {name} has changed since it was measured; run: sae eval run={run}")
        return None
    timing = run / "training" / name / "timing.json"
    seconds = read_json(timing).get("seconds") if timing.exists() else None
    return figures | {"training_seconds": seconds}


def _write_page(run: Path, front: dict[str, Any]) -> None:
    """The page with the front, its table, the training curves and densities: all there is."""
    path = run / "report.json"
    if path.exists() and "steering" in read_json(path):
        say(f"front: {run}/report.html is a demo's and shows more, so it stays as it is")
        return
    report = {
        **{key: front[key] for key in ("run", "model_name", "hook_name", "d_in")},
        **report_front(front),
        "versions": versions(),
    }
    names = [row["id"] for row in front["rows"]]
    write_json(path, report)
    page = render_page(report, [], training_curves(run, names, front["recommended"]))
    write_text(run / "report.html", page)


def report_front(front: dict[str, Any]) -> dict[str, Any]:
    """The front as a part of `report.json`."""
    return {
        "dictionaries": front["rows"],
        "chosen": {"id": front["recommended"], "rule": front["rule"]},
        "max_l0": front["max_l0"],
    }


def training_curves(
    run: Path, names: list[str], chosen: str
) -> dict[str, list[dict[str, Any]]]:
    """Training figures by dictionary, thinned to what a chart can show.

    Lines with figures of held-out rows are thinned apart, as they are few; their histograms of
    densities are kept for the chosen dictionary.
    """
    found = {}
    for name in names:
        path = run / "training" / name / "metrics.jsonl"
        lines = read_metrics(path) if path.exists() else []
        looks = [line for line in lines if _DENSITIES in line]
        usual = [line for line in lines if _DENSITIES not in line]
        kept = _thinned(usual, _CURVE_POINTS) + _thinned(looks, _CURVE_POINTS)
        dense = [line["step"] for line in _thinned(looks, _DENSITY_COLUMNS)]
        found[name] = [
            {
                key: value
                for key, value in line.items()
                if key != _DENSITIES or (name == chosen and line["step"] in dense)
            }
            for line in sorted(kept, key=lambda line: line["step"])
        ]
    return found


def _thinned(lines: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    return lines[:: max(1, math.ceil(len(lines) / most))]


def say_front(front: dict[str, Any]) -> None:
    """The table on the terminal, and where the rest of it lies."""
    say("\n" + as_text(front["rows"], front["recommended"], front["rule"]))
    if max(row["explained_variance"] for row in front["rows"]) <= 0:
        say("front: none of them explains more than the mean of the rows does")
    say(f"front: {front['run']}/front.png, .csv, .json\nreport: {front['run']}/report.html")
