"""A run's evaluated dictionaries compared, one recommended, and the page that shows it."""

import math
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from sae.atlas import Atlas, clearest_features
from sae.base import (
    JsonObject,
    UserError,
    damaged,
    read_json_lines,
    read_object,
    require,
    say,
    versions,
    write_json,
    write_text,
)
from sae.dictionary.files import read_record
from sae.figures import Figures
from sae.pages.page import render_page
from sae.pages.pareto import Pareto, as_csv, as_text
from sae.pages.pareto_picture import draw_pareto
from sae.run import Run

_CURVE_POINTS = 200
_DENSITIES = "plots/feature_density_line_chart"
_DENSITY_COLUMNS = 40


def write_comparison(
    run: Run, max_l0: float, names: list[str] | None = None, *, page: bool = True
) -> Pareto:
    """Write `pareto.json`, `.csv` and `.png` over a run's evaluated dictionaries, and the page.

    Of the dictionaries in `names`, or of all, the most faithful one up to `max_l0` is
    recommended. The page, `report.html` and `report.json`, is left alone where a demo, which
    shows more on it, has written its own.

    Raises:
        UserError: if none was evaluated.
    """
    evaluated = run.evaluated_names
    wanted = run.dictionary_names if names is None else names
    known = [f for name in wanted if name in evaluated and (f := _figures(run, name))]
    require(
        bool(known),
        f"{run.folder} has no evaluated dictionaries; run: sae eval run={run.folder}",
    )
    known.sort(key=lambda one: (one.trained_as, one.hook_name, -one.values["l0"]))
    dictionary = run.load(known[0].id)[1]
    pareto = Pareto(
        run=str(run.folder),
        model_name=dictionary.record.model_name or "a model",
        d_in=dictionary.d_in,
        max_l0=max_l0,
        dictionaries=tuple(known),
    )
    write_json(run.pareto("json"), pareto.to_json())
    write_text(run.pareto("csv"), as_csv(pareto))
    draw_pareto(pareto, run.pareto("png"))
    if page and run.report_data.exists() and "steering" in _told(run):
        say(f"pareto: {run.report} is a demo's and shows more, so it stays as it is")
    elif page:
        report = {
            "run": pareto.run,
            "model_name": pareto.model_name,
            "hook_name": pareto.recommended.hook_name,
            "d_in": pareto.d_in,
            **pareto.for_page(),
        }
        write_page(run, report)
    return pareto


def _told(run: Run) -> JsonObject:
    return read_object(run.report_data, "remove it and run sae eval again")


def _figures(run: Run, name: str) -> Figures | None:
    # None if it was trained further since it was measured.
    figures = Figures.read(run.evaluation(name))
    record = read_record(run.dictionary(name))
    if figures.training_digest != record.training_digest:
        say(f"pareto: {name} has changed since it was measured; run: sae eval run={run.folder}")
        return None
    timing = run.training(name) / "timing.json"
    seconds = None
    if timing.exists():
        spent = read_object(timing, "remove it; only the time is forgotten")
        seconds = spent.maybe("seconds", float)
    return replace(figures, training_seconds=seconds)


def write_page(run: Run, report: dict[str, Any]) -> None:
    """Write `report.json` and the page `report.html`, with the training curves of dictionaries.

    Versions are added, the addresses of the atlases that are there, and the clearest features
    of the chosen dictionary if it has one.
    """
    chosen = report["chosen"]["id"]
    atlases = {
        one["id"]: atlas for one in report["dictionaries"] if (atlas := _atlas(run, one))
    }
    report["atlases"] = {
        name: quote(f"{atlas.folder.relative_to(run.folder).as_posix()}/index.html")
        for name, atlas in atlases.items()
    }
    report["versions"] = versions()
    report["evidence"] = run.evidence_page.name if run.evidence_page.exists() else None
    write_json(run.report_data, report)
    curves = training_curves(run, [one["id"] for one in report["dictionaries"]], chosen)
    shown = atlases.get(chosen)
    examples = clearest_features(shown) if shown and not damaged(shown.folder) else []
    write_text(run.report, render_page(report, examples, curves))


def others_of(run: Run, name: str) -> dict[str, object] | None:
    """Return what an atlas says of the run's other dictionaries, if they were compared."""
    path = run.pareto("json")
    return Pareto.read(path).for_page(current=name) if path.is_file() else None


def link_atlases(run: Run) -> None:
    """Write the page of a run anew, if it has one, with links to the atlases there are now."""
    if run.report_data.is_file():
        told = _told(run)
        # What the page cannot do without; a file that lacks it is refused in a sentence.
        told.part("chosen").get("id", str)
        told.get("dictionaries", list)
        for key in ("model_name", "hook_name"):
            told.get(key, str)
        write_page(run, dict(told.values))


def _atlas(run: Run, entry: dict[str, Any]) -> Atlas | None:
    """Return the atlas of a compared dictionary, if there is one of the weights it has now."""
    atlas = Atlas(run.atlas(entry["id"]))
    try:
        digest = atlas.record.dictionary_digest
    except UserError:
        return None
    return atlas if digest == entry.get("dictionary_digest") else None


def training_curves(run: Run, names: list[str], chosen: str) -> dict[str, list[dict[str, Any]]]:
    """Training figures by dictionary, thinned to what a chart can show.

    Lines with figures of held-out rows are thinned apart, as they are few; their histograms of
    densities are kept for the chosen dictionary.
    """
    found = {}
    for name in names:
        path = run.training(name) / "metrics.jsonl"
        told = read_json_lines(path) if path.exists() else []
        lines = [line for line in told if isinstance(line.get("step"), int)]
        looks = [line for line in lines if _DENSITIES in line]
        usual = [line for line in lines if _DENSITIES not in line]
        kept = _thinned(usual, _CURVE_POINTS) + _thinned(looks, _CURVE_POINTS)
        dense = _thinned(looks, _DENSITY_COLUMNS) if name == chosen else []
        for line in kept:
            if line not in dense:
                line.pop(_DENSITIES, None)
        found[name] = sorted(kept, key=lambda line: line["step"])
    return found


def _thinned(lines: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    return lines[:: max(1, math.ceil(len(lines) / most))]


def compare_again(run: Run, max_l0: float) -> None:
    """Compare as `write_comparison` does, and show the table unless it is as it was."""
    table = run.pareto("csv")
    before = table.read_text(encoding="utf-8") if table.is_file() else ""
    pareto = write_comparison(run, max_l0)
    if as_csv(pareto) == before:
        say(f"pareto: the figures in {table} are as they were")
    else:
        say_comparison(pareto)


def say_comparison(pareto: Pareto) -> None:
    """Show the table on the terminal, and say where the rest of it lies."""
    say("\n" + as_text(pareto))
    if max(one.values["explained_variance"] for one in pareto.dictionaries) <= 0:
        say("pareto: none of them explains more than the mean of the rows does")
    say(f"pareto: {pareto.run}/pareto.png, .csv, .json\nreport: {pareto.run}/report.html")
