"""What steering with several features comes to: beside each baseline, and in one table."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sae.core.bootstrap import bootstrap_mean
from sae.steering import vocabulary
from sae.steering.arms import BASELINES, TITLES
from sae.steering.study import Studied
from sae.steering.trial import FIGURES, difference, interval_of

MEASURE = "shift"
"""The figure that comes first: it is what doses were chosen by, and the surest."""
_COMPARED = ("shift", "round_trip", "gain")
_LIMITS = {
    "unlimited": "Unlimited",
    "mask": "Mask: other words get no probability",
    "controller": "Controller to a target rate",
    "suppressed": "Features that promote other words held at 0",
    "random": "As many random features held at 0",
}
"""Titles of limits on words."""


def summarise(studied: Sequence[Studied], max_cost: float) -> dict[str, Any]:
    """Return headline, comparison with each baseline, and the table of arms."""
    n_without = sum(one.operating("feature") is None for one in studied)
    compared = {
        figure: [_compared(studied, baseline, figure) for baseline in BASELINES]
        for figure in _COMPARED
    }
    return {
        "headline": _headline(compared[MEASURE], len(studied), n_without, max_cost),
        "read_back": "By how strongly the feature is found in the written text: "
        f"{_counts(compared['round_trip'])}.",
        "max_cost": max_cost,
        "measure": MEASURE,
        "n_features": len(studied),
        "n_without_operating_point": n_without,
        "comparison": compared[MEASURE],
        "comparison_by": compared,
        "arms": [_arm(studied, arm) for arm in ("feature", "unsteered", *BASELINES)],
    }


def _compared(studied: Sequence[Studied], baseline: str, figure: str) -> dict[str, Any]:
    """Count on how many features steering is ahead of a baseline, and on how many behind."""
    wins = losses = 0
    rows = []
    for one in studied:
        ahead = difference(one.operating("feature"), one.operating(baseline), figure)
        interval = bootstrap_mean(ahead)
        wins += interval.low > 0
        losses += interval.high < 0
        rows.append(ahead)
    return {
        "baseline": baseline,
        "title": BASELINES[baseline],
        "wins": wins,
        "losses": losses,
        "undecided": len(studied) - wins - losses,
        "difference": bootstrap_mean(_table(rows)).to_json(),
    }


def _table(rows: Sequence[Tensor]) -> Tensor:
    """Return rows of texts as one table; a feature without one has no number in its row.

    Where features have their own numbers of texts, a row is its mean.
    """
    known = {len(row) for row in rows if not bool(row.isnan().all())}
    width = known.pop() if len(known) == 1 else 1
    whole = [row if len(row) == width else row.mean().reshape(1).expand(width) for row in rows]
    return torch.stack(whole) if whole else torch.empty(0, 1)


def _arm(studied: Sequence[Studied], arm: str) -> dict[str, Any]:
    found = [one.unsteered if arm == "unsteered" else one.operating(arm) for one in studied]
    trials = [trial for trial in found if trial is not None]
    figures: dict[str, Any] = {}
    for figure in FIGURES:
        rows = [trial.figures[figure] for trial in trials if figure in trial.figures]
        figures[figure] = interval_of(figure, _table(rows)).to_json() if rows else None
    return {
        "direction": arm,
        "title": TITLES[arm],
        "n_features": len(trials),
        "figures": figures,
    }


def _headline(
    compared: Sequence[dict[str, Any]], n: int, n_without: int, max_cost: float
) -> str:
    """Say first on how many features steering beats each baseline, and on how many it loses."""
    if n == 0:
        return "No feature was steered with."
    told = (
        f"Of {n} feature{'' if n == 1 else 's'}, at doses chosen to cost at most {max_cost:g} "
        f"nats a token, steering wins : loses by how far the feature's own tokens move against "
        f"{_counts(compared)}; on the others the two cannot be told apart."
    )
    if n_without:
        told += f" {n_without} had no dose at that cost."
    return told


def _counts(compared: Sequence[dict[str, Any]]) -> str:
    """Return wins and losses against each baseline."""
    return ", ".join(
        f"{one['title'][0].lower()}{one['title'][1:]} {one['wins']} : {one['losses']}"
        for one in compared
    )


def told_of_limits(found: dict[str, Any]) -> dict[str, Any]:
    """Return what `limit_vocabulary` found with intervals over prompts in place of lists."""
    arms = []
    for row in found["arms"]:
        figures = {
            key: torch.tensor(row[key], dtype=torch.float64) for key in vocabulary.FIGURES
        }
        # Of its logarithm the mean is the geometric one.
        figures["perplexity"] = figures.pop("log_perplexity")
        told = {key: interval_of(key, values).to_json() for key, values in figures.items()}
        arms.append({"arm": row["arm"], "title": _LIMITS[row["arm"]], "figures": told})
    return {**found, "arms": arms}
