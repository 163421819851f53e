"""The sparsity/fidelity front as a picture for a README."""

from pathlib import Path
from typing import Any

from sae.base.files import atomic_path

_INK, _MUTED, _RULE, _ACCENT = "#14201f", "#5c6866", "#dfe4e2", "#0b6f6a"

_PANELS = {
    "explained_variance": ("Explained variance", "share of the activations' variance kept"),
    "ce_loss_score": ("CE loss score", "share of the layer's effect on the loss kept"),
}


def draw_front(dictionaries: list[dict[str, Any]], path: Path) -> None:
    """Two panels over L0: explained variance and CE loss score, one point a dictionary.

    Args:
        dictionaries: as in the report; a point with a missing figure is left out.
        path: of the PNG to write.
    """
    # Here, so that training does not wait for a plotting library that it never uses.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    spacing = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.04)
    figure = Figure(figsize=(10, 4.4), dpi=160, facecolor="white", layout=spacing)
    FigureCanvasAgg(figure)
    for axes, (metric, names) in zip(
        figure.subplots(1, 2, sharex=True), _PANELS.items(), strict=True
    ):
        _style(axes, *names)
        _draw_points(axes, dictionaries, metric)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _style(axes: Any, title: str, subtitle: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axes.set_title(title, loc="left", color=_INK, fontsize=13, fontweight="bold", pad=24)
    axes.text(0, 1.035, subtitle, transform=axes.transAxes, color=_MUTED, fontsize=9.5)
    axes.set_xlabel("L0: features active on a token (log scale)", color=_MUTED, fontsize=9.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(colors=_MUTED, labelsize=9.5, length=0, which="both")
    axes.grid(color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set(visible=True, color=_RULE)
    axes.margins(x=0.16, y=0.2)


def _draw_points(axes: Any, dictionaries: list[dict[str, Any]], metric: str) -> None:
    points = sorted(
        (entry["l0"], entry[metric], entry["l1_coefficient"])
        for entry in dictionaries
        if entry.get("l0") and entry.get(metric) is not None
    )
    across, up = [point[0] for point in points], [point[1] for point in points]
    axes.plot(across, up, color=_ACCENT, linewidth=1.8, alpha=0.45, zorder=2)
    axes.scatter(across, up, s=62, color=_ACCENT, edgecolor="white", linewidth=1.4, zorder=3)
    for l0, value, coefficient in points:
        axes.annotate(
            f"$\\lambda$ = {coefficient:g}" if coefficient is not None else "",
            (l0, value),
            xytext=(7, -13),
            textcoords="offset points",
            color=_INK,
            fontsize=9.5,
        )
