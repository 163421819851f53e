"""Effect against cost of steering and its baselines, as a picture for a README or a paper."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.base import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _MUTED, _GRID, _ACCENT = "#14201f", "#5c6866", "#dfe4e2", "#0b6f6a"
_MEASURES = {
    "shift": "own-token shift, nats",
    "gain": "gain on held-out contexts, nats a token",
    "round_trip": "feature found in the written text, share of its maximum",
}
_LOOKS = {
    "feature": ("o", _ACCENT),
    "unsteered": ("o", _INK),
    "prompt": ("s", "#c95a00"),
    "difference_of_means": ("D", "#0072b2"),
    "wrong_sign": ("v", "#b3538a"),
    "random_direction": ("^", _MUTED),
    "random_feature": ("P", "#7a6a00"),
    "reconstruction": ("X", "#7c4dbb"),
}
"""Marker and hue of each arm."""
_SHIFTS = (-2, -1, -0.5, 0, 0.5, 1, 2, 5, 10)


def draw_steering(summary: dict[str, Any], path: Path) -> None:
    """Write the picture of `steering_figure` into a PNG."""
    figure = steering_figure(summary)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def steering_figure(summary: dict[str, Any]) -> "Figure":
    """Return a figure of the arms at their operating points, with a panel for each measure.

    Bars are 95% intervals. The square root of the cost is drawn, as KL grows with the square
    of a dose.
    """
    # Here, so that whoever draws nothing does not wait for a plotting library.
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from sae.base.picture import Picture

    spacing = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.03)
    figure = Picture(13.5, 4.6, layout=spacing)
    n = summary["n_features"]
    title = f"Effect against cost, means over {n} feature{'' if n == 1 else 's'}"
    figure.suptitle(title, color=_INK, fontsize=11, x=0.01, ha="left")
    all_axes = figure.subplots(1, len(_MEASURES))
    for axes, measure in zip(all_axes, _MEASURES, strict=True):
        _draw(axes, summary, measure)
    # A prompt that names tokens raises them far more than any push does.
    all_axes[0].set_yscale("symlog", linthresh=1)
    all_axes[0].set_yticks(_SHIFTS, [f"{shift:g}" for shift in _SHIFTS])
    handles, titles = all_axes[0].get_legend_handles_labels()
    look = {"frameon": False, "fontsize": 9, "labelcolor": _INK, "columnspacing": 1.1}
    look |= {"handletextpad": 0.3}
    figure.legend(handles, titles, loc="outside lower left", ncols=len(titles), **look)
    return figure


def _draw(axes: "Axes", summary: dict[str, Any], measure: str) -> None:
    axes.set_title(_MEASURES[measure], loc="left", fontsize=10, color=_INK)
    axes.set_xlabel("cost: KL on neutral text, nats a token", color=_MUTED, fontsize=9)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.tick_params(colors=_MUTED, labelsize=8.5)
    for side in axes.spines.values():
        side.set_color(_GRID)
    axes.set_axisbelow(True)
    axes.axhline(0, color=_MUTED, linewidth=0.8)
    bound, dashes = math.sqrt(summary["max_cost"]), (0, (3, 3))
    axes.axvline(bound, color=_MUTED, linewidth=0.9, linestyle=dashes, label="cost allowed")
    costs = [0.0, summary["max_cost"]]
    for arm in summary["arms"]:
        cost, effect = arm["figures"]["kl"], arm["figures"][measure]
        if not cost or not effect or None in (cost["mean"], effect["mean"]):
            continue
        costs.append(cost["mean"])
        _point(axes, arm, (_rooted(cost), effect))
    ticks = [tick for tick in (0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5) if tick < 1.3 * max(costs)]
    axes.set_xticks([0.0, *map(math.sqrt, ticks)], ["0", *(f"{tick:g}" for tick in ticks)])


def _rooted(cost: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if value is None else math.sqrt(max(0, value)) for key, value in cost.items()
    }


def _point(axes: "Axes", arm: dict[str, Any], place: tuple[dict[str, Any], ...]) -> None:
    marker, hue = _LOOKS[arm["direction"]]
    is_feature = arm["direction"] == "feature"
    bars = [
        # Of equal values a mean may be off its own ends by rounding.
        None
        if of["low"] is None
        else [[max(0.0, of["mean"] - of["low"])], [max(0.0, of["high"] - of["mean"])]]
        for of in place
    ]
    axes.errorbar(
        place[0]["mean"],
        place[1]["mean"],
        xerr=bars[0],
        yerr=bars[1],
        fmt=marker,
        color=hue,
        markersize=9 if is_feature else 6,
        elinewidth=0.9,
        zorder=4 if is_feature else 3,
        label=arm["title"],
    )
