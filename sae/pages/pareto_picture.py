"""Sparsity against fidelity, the dictionaries of a run as a picture for a README or a paper."""

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sae.base import atomic_path
from sae.metrics import METRICS, Metric, shown_in
from sae.pages.pareto import Pareto, Point, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_INK, _MUTED, _GRID, _ACCENT = "#14201f", "#5c6866", "#dfe4e2", "#0b6f6a"
_HUES = ("#0072b2", "#c95a00", "#00876a", "#b3538a", "#7a6a00", "#4f5b66")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_PLACES = ((8, -9), (8, 9), (-8, 9), (-8, -9), (0, 14), (0, -14), (11, 0), (-11, 0))
"""Where a label may go, in points from its own point, the best first."""
_MOST_IDS = 6

Style = dict[str, Any]
_DASHED: Style = {"color": _MUTED, "linewidth": 0.9, "linestyle": (0, (3, 3)), "zorder": 1}
_DOT: Style = {"s": 52, "edgecolor": "white", "linewidth": 1.1, "zorder": 3, "clip_on": False}
_RING: Style = {"s": 165, "edgecolor": _INK, "linewidth": 1.5, "zorder": 4, "clip_on": False}
_LABEL: Style = {"textcoords": "offset points", "va": "center", "fontsize": 9, "zorder": 5}
_LEGEND: Style = {"loc": "outside lower left", "frameon": False, "fontsize": 9.5}
_LEGEND |= {"labelcolor": _INK, "handletextpad": 0.3, "columnspacing": 1.8}

Looks = dict[str, tuple[str, str]]
"""Hue and marker of each series."""


def draw_pareto(pareto: Pareto, path: Path) -> None:
    """Write the picture of `pareto_figure` into a PNG."""
    figure = pareto_figure(pareto)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def pareto_figure(pareto: Pareto) -> "Figure":
    """Return a figure with a panel over L0 for each metric that asks for one.

    A panel that no dictionary has a figure for is left out, and so is a point that misses its
    own. Labels that would lie over another are left out. Of several dictionaries the
    recommended one is marked.
    """
    # Here, so that training does not wait for a plotting library that it never uses.
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from sae.base.picture import Picture

    shown = [point for point in points(pareto.dictionaries) if point.figures.values.get("l0")]
    series = dict.fromkeys(point.series for point in shown)
    looks = {
        name: (_HUES[i % 6] if len(series) > 1 else _ACCENT, _MARKERS[i % 6])
        for i, name in enumerate(series)
    }
    metrics = [metric for metric in shown_in("picture") if _known(shown, metric)]
    metrics = metrics or [METRICS["explained_variance"]]
    spacing = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.03)
    figure = Picture(0.6 + 4.7 * len(metrics), 4.6, layout=spacing)
    all_axes = figure.subplots(1, len(metrics), sharex=True, squeeze=False)[0]
    chosen = pareto.recommended.id if len(pareto.dictionaries) > 1 else None
    _scale(all_axes[0], [point.figures.values["l0"] for point in shown] or [1.0])
    for axes, metric in zip(all_axes, metrics, strict=True):
        _style(axes, metric)
        _draw(axes, _known(shown, metric), metric, looks, chosen)
        if axes.get_xlim()[0] < pareto.max_l0 < axes.get_xlim()[1]:
            words = f"L0 = {pareto.max_l0:g}, chosen up to here"
            axes.axvline(pareto.max_l0, label=words, **_DASHED)
        if metric.higher_is_better is False:
            # Its best is zero, and how far from that they are is what counts.
            axes.set_ylim(0, max(0.01, 1.18 * axes.dataLim.y1))
    _legend(figure, all_axes[0])
    figure.draw_without_rendering()
    for axes, metric in zip(all_axes, metrics, strict=True):
        _label(axes, _known(shown, metric), metric, looks, chosen)
    return figure


def _known(shown: Sequence[Point], metric: Metric) -> list[Point]:
    return [point for point in shown if metric.key in point.figures.values]


def _place(point: Point, metric: Metric) -> tuple[float, float]:
    return point.figures.values["l0"], point.figures.values[metric.key]


def _scale(axes: "Axes", l0: Sequence[float]) -> None:
    """Make the L0 axis, which all panels share, wide enough for labels and never one value."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    across = np.log10(l0)
    middle, half = (across.max() + across.min()) / 2, 0.62 * np.ptp(across) + 0.14
    axes.set_xscale("log")
    axes.set_xlim(10 ** (middle - half), 10 ** (middle + half))
    subs = (1, 2, 5) if half > math.log10(6) / 2 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _style(axes: "Axes", metric: Metric) -> None:
    axes.set_title(metric.title, loc="left", color=_INK, fontsize=13, fontweight="bold", pad=24)
    axes.text(0, 1.035, metric.meaning, transform=axes.transAxes, color=_MUTED, fontsize=9.5)
    axes.set_xlabel("L0: features active on a token (log scale)", color=_MUTED, fontsize=9.5)
    axes.tick_params(colors=_MUTED, labelsize=9.5, length=0, which="both")
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set(visible=True, color=_GRID)
    axes.margins(y=0.16)
    if metric.form.endswith("%"):
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")


def _draw(
    axes: "Axes", shown: Sequence[Point], metric: Metric, looks: Looks, chosen: str | None
) -> None:
    """Draw every dictionary as a point, and a line a series through the means over seeds.

    What only ids tell apart has no order that a line could follow.
    """
    for name, (hue, marker) in looks.items():
        own = [point for point in shown if point.series == name]
        seeds = defaultdict(list)
        for point in own:
            if not point.told_by_id:
                seeds[point.label].append(_place(point, metric))
        means = sorted(tuple(np.mean(places, axis=0)) for places in seeds.values())
        axes.plot(*np.transpose(means), color=hue, linewidth=1.7, alpha=0.45, zorder=2)
        x, y = np.reshape([_place(point, metric) for point in own], (-1, 2)).T
        title = name if len(looks) > 1 else None
        axes.scatter(x, y, color=hue, marker=marker, label=title, **_DOT)
    for point in shown:
        if point.figures.id == chosen:
            words = f"recommended: {chosen}"
            axes.scatter(*_place(point, metric), facecolor="none", label=words, **_RING)


def _legend(figure: "Figure", axes: "Axes") -> None:
    """Say in a row below what hues, the ring and the dashed line stand for."""
    handles, names = axes.get_legend_handles_labels()
    if handles:
        inches = sum(0.5 + 0.085 * len(name) for name in names)
        lines = math.ceil(inches / figure.get_figwidth())
        columns = math.ceil(len(handles) / lines)
        figure.legend(handles, names, ncols=columns, **_LEGEND)


def _label(
    axes: "Axes", shown: Sequence[Point], metric: Metric, looks: Looks, chosen: str | None
) -> None:
    """Say what was swept beside each point, where there is room for it.

    Dictionaries that differ in their seed alone are named once; of many that only their ids
    tell apart, the chosen one alone.
    """
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    spots = axes.transData.transform([_place(point, metric) for point in shown] or [(1, 0)])
    half = 4 * axes.figure.dpi / 72
    taken = [Bbox([spot - half, spot + half]) for spot in spots]
    named = set()
    many = sum(point.told_by_id for point in shown) > _MOST_IDS
    halo = withStroke(linewidth=2.4, foreground="white")
    for point in sorted(shown, key=lambda p: (p.figures.id != chosen, p.figures.values["l0"])):
        is_chosen = point.figures.id == chosen
        crowd = many and point.told_by_id and not is_chosen
        if crowd or not point.label or (point.series, point.label) in named:
            continue
        text = axes.annotate(
            point.label,
            _place(point, metric),
            xytext=(0, 0),
            color=looks[point.series][0] if len(looks) > 1 else _INK,
            fontweight="bold" if is_chosen else "normal",
            in_layout=False,
            path_effects=[halo],
            **_LABEL,
        )
        if _settle(text, axes, taken, spots):
            named.add((point.series, point.label))
        else:
            text.remove()


def _settle(
    text: "Annotation", axes: "Axes", taken: "list[Bbox]", spots: NDArray[np.float64]
) -> bool:
    """Move a label to the free place where it crosses the fewest lines, if there is one.

    A place where another point is nearer than its own would say something wrong.
    """

    def box_at(right: int, up: int) -> "Bbox":
        text.set_position((right, up))
        text.set_horizontalalignment(
            "left" if right > 0 else "right" if right < 0 else "center"
        )
        return text.get_window_extent()

    lines = [line.get_transform().transform_path(line.get_path()) for line in axes.lines]
    own = axes.transData.transform(text.xy)
    frame, crossed = axes.bbox, {}
    for place in _PLACES:
        box = box_at(*place)
        outside = box.x0 < frame.x0 - 12 or box.x1 > frame.x1 + 12 or box.y0 < frame.y0 + 2
        belongs = _distance(box, own[None])[0] <= _distance(box, spots).min() + 0.5
        if not outside and belongs and not any(box.overlaps(other) for other in taken):
            crossed[place] = sum(line.intersects_bbox(box, filled=False) for line in lines)
    if crossed:
        taken.append(box_at(*min(crossed, key=crossed.__getitem__)))
    return bool(crossed)


def _distance(box: "Bbox", spots: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far from the edge of a label points are, (point,)."""
    nearest = np.clip(spots, box.min, box.max)
    found: NDArray[np.float64] = np.linalg.norm(spots - nearest, axis=1)
    return found
