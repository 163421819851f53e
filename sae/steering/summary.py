"""What steering with several features comes to: beside each baseline, and in one table."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sae.core.bootstrap import bootstrap_mean
from sae.steering.arms import BASELINES, TITLES
from sae.steering.study import Studied
from sae.steering.trial import FIGURES, difference, interval_of

MEASURE = "round_trip"
"""The figure that decides: the text is read by the model left alone, so that a baseline that
touches nothing inside the model can be compared, and raising tokens alone does not pass."""
_COMPARED = ("round_trip", "shift", "gain")
_ARTICLES = dict.fromkeys(("prompt", "wrong_sign", "difference_of_means"), "the ")
_ARTICLES["reconstruction"] = ""


def summarise(studied: Sequence[Studied], max_cost: float) -> dict[str, Any]:
    """Return headline, comparison with each baseline, and the table of arms."""
    n_without = sum(one.operating("feature") is None for one in studied)
    compared = {
        figure: [_compared(studied, baseline, figure) for baseline in BASELINES]
        for figure in _COMPARED
    }
    return {
        "headline": _headline(compared[MEASURE], len(studied), n_without, max_cost),
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
    parts = [
        f"{_named(one['baseline'])} on {one['wins']} and loses to it on {one['losses']}"
        for one in compared
    ]
    if n == 0:
        return "No feature was steered with."
    several = "features" if n != 1 else "feature"
    told = (
        f"Of {n} {several}, steering at doses chosen to cost at most {max_cost:g} nats a token "
        f"beats "
        f"{'; '.join(parts)}; on the others the two cannot be told apart."
    )
    if n_without:
        told += f" {n_without} had no dose at that cost."
    return told


def _named(baseline: str) -> str:
    title = BASELINES[baseline]
    article = _ARTICLES.get(baseline, "a ")
    return f"{article}{title[0].lower()}{title[1:]}"
