"""What recipes find of a world whose features are known, as a picture for a README or paper."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sae.base import atomic_path
from sae.findings import Finding, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _MUTED, _GRID, _ACCENT = "#14201f", "#5c6866", "#dfe4e2", "#0b6f6a"
_PANELS = ("truth_f1", "truth_mcc")


def draw_truth(recipes: Mapping[str, Sequence[Finding]], path: Path) -> None:
    """Draw F1 and MCC of each recipe into a PNG, with 95% intervals and floors."""
    # Here, so that whoever draws nothing does not wait for a plotting library.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    spacing = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.03)
    height = 1.5 + 0.34 * len(recipes)
    figure = Figure(figsize=(10.5, height), dpi=160, facecolor="white", layout=spacing)
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(_PANELS), sharey=True)
    for axes, key in zip(all_axes, _PANELS, strict=True):
        found = [shown(findings, key) for findings in recipes.values()]
        _draw(axes, [one for one in found if one is not None])
    all_axes[0].set_yticks(range(len(recipes)), list(recipes))
    all_axes[0].set_ylim(len(recipes) - 0.5, -0.5)
    handles, titles = all_axes[0].get_legend_handles_labels()
    look = {"frameon": False, "fontsize": 9, "labelcolor": _INK}
    figure.legend(handles, titles, loc="outside lower left", ncols=len(titles), **look)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw(axes: "Axes", found: Sequence[Finding]) -> None:
    metric = found[0].metric
    axes.set_title(metric.title, loc="left", fontsize=11, color=_INK)
    axes.set_xlim(0, 1)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.tick_params(colors=_MUTED, labelsize=9, length=0)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    places = range(len(found))
    values = [one.value or 0.0 for one in found]
    lows = [
        value if one.low is None else one.low for value, one in zip(values, found, strict=True)
    ]
    highs = [
        value if one.high is None else one.high
        for value, one in zip(values, found, strict=True)
    ]
    n = f"{found[0].n} {found[0].unit}"
    axes.hlines(places, lows, highs, color=_ACCENT, linewidth=2, label=f"95% interval, n = {n}")
    axes.scatter(values, places, color=_ACCENT, s=34, zorder=3, label="mean")
    floors = [(one.floor, place) for place, one in enumerate(found) if one.floor is not None]
    if floors:
        x, y = zip(*floors, strict=True)
        axes.scatter(x, y, color=_MUTED, marker="|", s=120, label=found[0].floor_of)
