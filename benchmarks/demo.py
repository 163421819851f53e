"""Whether the demo keeps what it promises: `python -m benchmarks.demo [RUN [full]]`.

A demo that is there already, in `RUN`, is measured as it is; one that is not is made, and what
took how long is in its report.
"""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.common import write_results
from sae.base.files import read_json

MINUTES = {"quick": 5.0, "full": 12.0}
"""On two quiet cores."""


def main(run: str = "runs/bench-demo", form: str = "quick") -> None:
    """Make the demo in `run` if it is not there, and write its figures beside the promises."""
    preset = [] if form == "quick" else [f"preset={form}"]
    subprocess.run([sys.executable, "-m", "sae", "demo", f"run={run}", *preset], check=True)
    report: dict[str, Any] = read_json(Path(run) / "report.json")
    write_results(
        f"demo_{form}",
        f"What the {form} demo promises, and what it gave",
        promises(report, form),
    )


def promises(report: dict[str, Any], form: str) -> list[dict[str, Any]]:
    """Return a row for each promise."""
    own = [one for one in report["dictionaries"] if one.get("control") is None]
    own.sort(key=lambda one: one["l1_coefficient"])
    l0 = [one["l0"] for one in own]
    (chosen,) = (one for one in own if one["id"] == report["chosen"]["id"])
    minutes = sum(report["timings"].values()) / 60
    stages = ", ".join(f"{name} {seconds:.0f}" for name, seconds in report["timings"].items())
    has = {
        "an atlas": chosen["id"] in report["atlases"],
        "steering": bool(report["steering"]["summary"]["arms"]),
        "an export": bool(report["export"]["files"]),
    }
    rows = [
        ("minutes", f"at most {MINUTES[form]:g}", f"{minutes:.1f}", minutes <= MINUTES[form]),
        ("seconds of each stage", "", stages, ""),
        ("dictionaries", "4 or more", str(len(own)), len(own) >= 4),
        (
            "L0, by rising coefficient",
            "falls",
            ", ".join(f"{one:.1f}" for one in l0),
            all(a > b for a, b in pairwise(l0)),
        ),
        ("L0 of the chosen", "20 to 80", f"{chosen['l0']:.1f}", 20 <= chosen["l0"] <= 80),
        _least("explained variance", chosen["explained_variance"], 0.70),
        _least("CE score", chosen["ce_loss_score"], 0.85),
        (
            "dead features",
            "below 5%",
            f"{chosen['dead_fraction']:.1%}",
            chosen["dead_fraction"] < 0.05,
        ),
        (
            "it has",
            ", ".join(has),
            ", ".join(n for n, there in has.items() if there),
            all(has.values()),
        ),
    ]
    names = ("of the demo", "promised", "measured", "kept")
    return [dict(zip(names, row, strict=True)) for row in rows]


def _least(name: str, value: float, least: float) -> tuple[str, str, str, bool]:
    return name, f"at least {least:.2f}", f"{value:.3f}", value >= least


if __name__ == "__main__":
    main(*sys.argv[1:])
