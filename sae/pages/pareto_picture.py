"""Sparsity against fidelity, the dictionaries of a run as a picture for a README or a paper."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sae.base import atomic_path
from sae.metrics import METRICS, Metric, shown_in
from sae.pages.pareto import Pareto, Point, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_INK, _MUTED, _RULE, _ACCENT = "#14201f", "#5c6866", "#dfe4e2", "#0b6f6a"
_HUES = ("#0072b2", "#c95a00", "#00876a", "#b3538a", "#7a6a00", "#4f5b66")
_MARKERS = ("o", "s", "^", "D", "v", "P")

_LIMIT: dict[str, Any] = {"color": _MUTED, "linewidth": 0.9, "linestyle": (0, (3, 3))}
_PLACES = ((8, -9), (8, 9), (-8, 9), (-8, -9), (0, 14), (0, -14), (11, 0), (-11, 0))
"""Where a label may go, in points from its own point, the best first."""

_MOST_IDS = 6

Looks = dict[str, tuple[str, str]]
"""Hue and marker of each series."""


def draw_pareto(pareto: Pareto, path: Path) -> None:
    """Draw a panel over L0 for each metric that asks for one.

    A panel that no dictionary has a figure for is left out, and so is a point that misses its
    own. Labels that would lie over another are left out. Of several dictionaries the
    recommended one is marked.

    Args:
        path: of the PNG to write.
    """
    # Here, so that training does not wait for a plotting library that it never uses.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    shown = [point for point in points(pareto.dictionaries) if _l0(point)]
    series = dict.fromkeys(point.series for point in shown)
    looks = {
        name: (_HUES[i % 6] if len(series) > 1 else _ACCENT, _MARKERS[i % 6])
        for i, name in enumerate(series)
    }
    panels = [metric for metric in shown_in("picture") if _known(shown, metric)]
    panels = panels or [METRICS["explained_variance"]]
    spacing = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.03)
    figure = Figure(
        figsize=(0.6 + 4.7 * len(panels), 4.6), dpi=160, facecolor="white", layout=spacing
    )
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(panels), sharex=True, squeeze=False)[0]
    chosen = pareto.recommended.id if len(pareto.dictionaries) > 1 else None
    if all(point.figures.id != chosen for point in shown):
        chosen = None
    for axes, metric in zip(all_axes, panels, strict=True):
        _style(axes, metric)
        _draw_points(axes, shown, metric, looks)
        _mark(axes, shown, metric, chosen)
    _fit(all_axes, shown, pareto.max_l0)
    for axes, metric in zip(all_axes, panels, strict=True):
        if metric.higher_is_better is False:
            # Its best is zero, and how far from that they are is what counts.
            axes.set_ylim(0, max(0.01, 1.18 * axes.dataLim.y1))
    _legend(
        figure, looks, chosen, pareto.max_l0 if _within(all_axes[0], pareto.max_l0) else None
    )
    figure.draw_without_rendering()
    for axes, metric in zip(all_axes, panels, strict=True):
        _label(axes, shown, metric, looks, chosen)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _l0(point: Point) -> float:
    return point.figures.values.get("l0", 0.0)


def _known(shown: Sequence[Point], metric: Metric) -> list[Point]:
    return [point for point in shown if metric.key in point.figures.values]


def _style(axes: "Axes", metric: Metric) -> None:
    axes.set_title(metric.title, loc="left", color=_INK, fontsize=13, fontweight="bold", pad=24)
    axes.text(0, 1.035, metric.meaning, transform=axes.transAxes, color=_MUTED, fontsize=9.5)
    axes.set_xlabel("L0: features active on a token (log scale)", color=_MUTED, fontsize=9.5)
    axes.tick_params(colors=_MUTED, labelsize=9.5, length=0, which="both")
    axes.grid(color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set(visible=True, color=_RULE)
    axes.margins(y=0.16)
    if metric.form.endswith("%"):
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")


def _fit(all_axes: Sequence["Axes"], shown: Sequence[Point], max_l0: float) -> None:
    """One L0 axis for all panels, wide enough for labels and never a single value."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    across = np.log10([_l0(point) for point in shown] or [1.0])
    middle, half = (across.max() + across.min()) / 2, np.ptp(across) / 2
    low, high = 10 ** (middle - 1.24 * half - 0.14), 10 ** (middle + 1.24 * half + 0.14)
    for axes in all_axes:
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        subs = (1, 2, 5) if high / low > 6 else (1, 1.5, 2, 3, 4, 5, 6, 8)
        axes.xaxis.set_major_locator(LogLocator(subs=subs))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        if _within(axes, max_l0):
            axes.axvline(max_l0, **_LIMIT, zorder=1)


def _within(axes: "Axes", max_l0: float) -> bool:
    low, high = axes.get_xlim()
    return bool(low < max_l0 < high)


def _draw_points(axes: "Axes", shown: Sequence[Point], metric: Metric, looks: Looks) -> None:
    """Every dictionary as a point, and a line a series through the means over seeds.

    What only ids tell apart has no order that a line could follow.
    """
    for name, (hue, marker) in looks.items():
        own = [point for point in _known(shown, metric) if point.series == name]
        line = _means([point for point in own if not point.told_by_id], metric)
        axes.plot(*line, color=hue, linewidth=1.7, alpha=0.45, zorder=2)
        axes.scatter(
            [_l0(point) for point in own],
            [point.figures.values[metric.key] for point in own],
            s=52,
            color=hue,
            marker=marker,
            edgecolor="white",
            linewidth=1.1,
            zorder=3,
            clip_on=False,
        )


def _means(own: Sequence[Point], metric: Metric) -> tuple[list[float], list[float]]:
    """L0 and figure, mean over the dictionaries of one label, in the order of L0."""
    labels = dict.fromkeys(point.label for point in own)
    groups = [[point.figures for point in own if point.label == label] for label in labels]
    means = sorted(
        tuple(float(np.mean([one.values[key] for one in group])) for key in ("l0", metric.key))
        for group in groups
    )
    return [l0 for l0, _ in means], [value for _, value in means]


def _mark(axes: "Axes", shown: Sequence[Point], metric: Metric, chosen: str | None) -> None:
    for point in _known(shown, metric):
        if point.figures.id == chosen:
            axes.scatter(
                [_l0(point)],
                [point.figures.values[metric.key]],
                s=165,
                facecolor="none",
                edgecolor=_INK,
                linewidth=1.5,
                zorder=4,
                clip_on=False,
            )


def _legend(figure: "Figure", looks: Looks, chosen: str | None, max_l0: float | None) -> None:
    """What hues, the ring and the dashed line stand for, in a row below."""
    from matplotlib.lines import Line2D

    common: dict[str, Any] = {"linewidth": 0, "markersize": 7.5}
    handles = [
        Line2D([], [], color=hue, marker=marker, markeredgecolor="white", label=name, **common)
        for name, (hue, marker) in looks.items()
        if len(looks) > 1
    ]
    if chosen is not None:
        ring: dict[str, Any] = {
            "markerfacecolor": "none",
            "markeredgecolor": _INK,
            "markeredgewidth": 1.4,
        }
        name = f"recommended: {chosen}"
        handles.append(Line2D([], [], marker="o", label=name, **common | ring))
    if max_l0 is not None:
        handles.append(Line2D([], [], label=f"L0 = {max_l0:g}, chosen up to here", **_LIMIT))
    if handles:
        inches = sum(0.5 + 0.085 * len(str(handle.get_label())) for handle in handles)
        lines = math.ceil(inches / figure.get_figwidth())
        figure.legend(
            handles=handles,
            loc="outside lower left",
            ncols=math.ceil(len(handles) / lines),
            frameon=False,
            fontsize=9.5,
            labelcolor=_INK,
            handletextpad=0.3,
            columnspacing=1.8,
        )


def _label(
    axes: "Axes", shown: Sequence[Point], metric: Metric, looks: Looks, chosen: str | None
) -> None:
    """Say what was swept beside each point, where there is room for it.

    Dictionaries that differ in their seed alone are named once; of many that only their ids
    tell apart, the chosen one alone.
    """
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    own = sorted(_known(shown, metric), key=lambda p: (p.figures.id != chosen, _l0(p)))
    at = {point.figures.id: (_l0(point), point.figures.values[metric.key]) for point in own}
    spots = axes.transData.transform(list(at.values()) or [(1, 0)])
    unit = axes.figure.dpi / 72
    taken = [Bbox.from_bounds(x - 4 * unit, y - 4 * unit, 8 * unit, 8 * unit) for x, y in spots]
    crossed = _line_spots(axes)
    named = set()
    many = sum(point.told_by_id for point in own) > _MOST_IDS
    for point in own:
        is_chosen = point.figures.id == chosen
        if not point.label or (point.series, point.label) in named:
            continue
        if many and point.told_by_id and not is_chosen:
            continue
        text = axes.annotate(
            point.label,
            at[point.figures.id],
            xytext=_PLACES[0],
            textcoords="offset points",
            color=looks[point.series][0] if len(looks) > 1 else _INK,
            fontsize=9,
            fontweight="bold" if is_chosen else "normal",
            zorder=5,
        )
        text.set_in_layout(False)
        text.set_path_effects([withStroke(linewidth=2.4, foreground="white")])
        box = _settle(text, axes, taken, crossed)
        if box is None:
            text.remove()
        else:
            taken.append(box)
            named.add((point.series, point.label))


def _settle(
    text: "Annotation", axes: "Axes", taken: Sequence["Bbox"], crossed: np.ndarray
) -> "Bbox | None":
    """Move a label to the best free place; its box there, or None if all are taken."""
    best = None
    for cost, (right, up) in enumerate(_PLACES):
        text.set_position((right, up))
        text.set_horizontalalignment(
            "left" if right > 0 else "right" if right < 0 else "center"
        )
        text.set_verticalalignment("center")
        box = text.get_window_extent()
        frame = axes.bbox
        outside = box.x0 < frame.x0 - 12 or box.x1 > frame.x1 + 12 or box.y0 < frame.y0 + 2
        if outside or any(box.overlaps(other) for other in taken):
            continue
        lines = box.count_contains(crossed) if len(crossed) else 0
        if best is None or (lines, cost) < best[0]:
            best = (lines, cost), (right, up), box
    if best is None:
        return None
    _, (right, up), box = best
    text.set_position((right, up))
    text.set_horizontalalignment("left" if right > 0 else "right" if right < 0 else "center")
    return box


def _line_spots(axes: "Axes") -> np.ndarray:
    """Pixels along the lines, which labels should rather not cross."""
    steps = np.linspace(0, 1, 60)[:, None]
    spots = [np.empty((0, 2))]
    for line in axes.lines:
        ends = line.get_transform().transform(line.get_xydata())
        spots += [a + steps * (b - a) for a, b in pairwise(ends)]
    return np.concatenate(spots)
