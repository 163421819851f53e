"""Which features are dials, and whether steering with them beats its baselines.

The demo's dictionary, or any other: `python -m benchmarks.steering [RUN [DICTIONARY]]`, and
with `dials` before them the scores alone. Every feature that fires is scored, in one analysis
whose time is taken apart; ten features chosen by their dial score and ten by the agreement of
contexts and promoted tokens are steered with; and limits on the words of a text are compared.
"""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas
import torch

import sae
from benchmarks.common import write_results
from sae.analysis import analyze
from sae.analysis.dials import measure_doses
from sae.atlas.choice import choose_by_agreement, choose_dials
from sae.core.bootstrap import bootstrap_mean
from sae.run import Run

N_FEATURES = 10
WORDS = Path(__file__).parents[1] / "docs" / "basic-words.txt"
BEST = ("shift", "gain", "round_trip")
SHOWN = {
    "shift": "shift",
    "gain": "gain",
    "round_trip": "round trip",
    "kl": "KL",
    "delta_ce": "ΔCE",
    "perplexity": "perplexity",
    "distinct_2": "distinct-2",
    "longest_repeat": "longest repeat",
}


def timed(work: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """Return what does the work and adds the seconds that it took to a list."""

    def run(*args: Any) -> Any:
        began = time.perf_counter()
        try:
            return work(*args)
        finally:
            spent.append(time.perf_counter() - began)

    return run


def score_all(run: str, name: str) -> tuple[list[dict[str, Any]], dict[str, object]]:
    """Score all features that fire; returns the atlas's records and a row of the table."""
    spent: list[float] = []
    began = time.perf_counter()
    with patch.object(analyze, "measure_doses", timed(measure_doses, spent)):
        atlas = sae.analyze(run=run, dictionary=name, dials=sae.DialConfig(n_features=None))
    whole, record = time.perf_counter() - began, atlas.record
    table = pandas.read_parquet(atlas.folder / "features.parquet")
    scored = table[table["dial_verdict"] != ""]
    beyond = float((scored["dial_score"] > scored["dial_score_null"]).mean())
    return atlas.features(), {
        "what": "dial scores",
        "features": record.n_scored,
        "seconds": round(sum(spent), 1) if spent else "reused",
        "whole analysis, seconds": round(whole, 1),
        "dials": record.n_dials,
        "weak": record.n_weak_dials,
        "beyond all nulls": f"{beyond:.1%}",
        "by chance": f"{1 / (2 * (record.n_nulls or 0) + 1):.1%}",
        "median KL of dials": round(record.median_dial_cost or 0, 3),
        "median shift": round(float(scored["dial_score"].median()), 3),
        "correlation with input score": round(
            float(scored["dial_score"].corr(scored["input_score"], method="spearman")), 3
        ),
        "with output score": round(
            float(scored["dial_score"].corr(scored["output_score"], method="spearman")), 3
        ),
    }


def told(interval: dict[str, float | None] | None) -> str:
    """Return a mean with the ends of its interval."""
    if interval is None or interval["mean"] is None:
        return "–"
    if interval["low"] is None:
        return f"{interval['mean']:.3g}"
    return f"{interval['mean']:.3g} [{interval['low']:.3g}, {interval['high']:.3g}]"


def rows_of(criterion: str, found: dict[str, Any]) -> list[dict[str, object]]:
    """Return a row for each arm, with the features on which steering is ahead and behind."""
    ahead = {
        (row["baseline"], figure): f"{row['wins']} : {row['losses']}"
        for figure, compared in found["summary"]["comparison_by"].items()
        for row in compared
    }
    print(found["summary"]["headline"])
    for one in found["features"]:
        print(criterion, one["feature"], one["top_tokens"], one["told"], one["null"])
        for check in one["checks"]:
            print("   ", check["title"], check["holds"], check["told"])
    return [
        {
            "chosen by": criterion,
            "arm": arm["title"],
            "features": arm["n_features"],
            **{title: told(arm["figures"][key]) for key, title in SHOWN.items()},
            **{
                f"won : lost, {SHOWN[figure]}": ahead.get((arm["direction"], figure), "")
                for figure in BEST
            },
        }
        for arm in found["summary"]["arms"]
    ]


def ratios(found: Mapping[str, dict[str, Any]]) -> list[dict[str, object]]:
    """Return how much more features do that one criterion chose than those of the other."""
    means: dict[str, dict[str, torch.Tensor]] = {}
    for criterion, results in found.items():
        own = [
            next(
                m for m in one["measurements"] if m["direction"] == "feature" and m["operating"]
            )
            for one in results["features"]
            if one["operating_strength"] is not None
        ]
        means[criterion] = {
            key: torch.tensor([trial[key]["mean"] for trial in own]) for key in BEST
        }
    first, second = means.values()
    return [
        {
            "figure": SHOWN[key],
            **{
                f"by {name}": told(bootstrap_mean(m[key]).to_json())
                for name, m in means.items()
            },
            "ratio of means": round(float(first[key].mean() / second[key].mean()), 2),
        }
        for key in BEST
    ]


def limits(run: str, name: str) -> list[dict[str, object]]:
    """Return a row for each limit on the words of a text."""
    found = sae.steer(run=run, dictionary=name, n_features=0, vocabulary=str(WORDS))
    return [
        {"arm": arm["title"], **{key: told(one) for key, one in arm["figures"].items()}}
        for arm in found["vocabulary"]["arms"]
    ]


def dials(run: str = "runs/demo", name: str | None = None) -> list[dict[str, Any]]:
    """Score every feature that fires, and return the atlas's records."""
    name = Run.at(run).load(name)[0]
    records, scores = score_all(run, name)
    write_results("dials", f"Dials among the features of {name}", [scores])
    return records


def main(run: str = "runs/demo", name: str | None = None) -> None:
    """Measure all of it on a run with a cache and a dictionary."""
    name = Run.at(run).load(name)[0]
    records = dials(run, name)
    chosen = {
        "dial score": choose_dials(records, N_FEATURES),
        "agreement": choose_by_agreement(records, N_FEATURES),
    }
    found = {
        criterion: sae.steer(run=run, dictionary=name, features=features)
        for criterion, features in chosen.items()
    }
    rows = [row for criterion, one in found.items() for row in rows_of(criterion, one)]
    write_results("steering", f"Steering with features of {name} beside its baselines", rows)
    title = f"Features of {name} chosen by dial score and by agreement"
    write_results("steering_choice", title, ratios(found))
    title = "Texts limited to a list of common words, and what limits cost"
    write_results("vocabulary", title, limits(run, name))


if __name__ == "__main__":
    if sys.argv[1:2] == ["dials"]:
        dials(*sys.argv[2:4])
    else:
        main(*sys.argv[1:3])
