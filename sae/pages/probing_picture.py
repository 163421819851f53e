"""Layer curves of probes: how well labels can be told at each hook, beside the controls."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.base import atomic_path

if TYPE_CHECKING:
    import pyarrow
    from matplotlib.axes import Axes

MOST_TASKS = 12
"""Tasks that are drawn; the page has all."""
_INK, _MUTED, _GRID = "#14201f", "#5c6866", "#dfe4e2"
_HUES = {
    "raw": "#0b6f6a",
    "difference_of_means": "#a55a00",
    "features": "#0a4f8f",
    "random_decoder": "#8a8f98",
}
_NAMES = {
    "raw": "raw activations",
    "difference_of_means": "difference of means",
    "features": "features, all",
    "random_decoder": "random decoder, all",
}

Row = Mapping[str, Any]


def draw_probing(summary: Mapping[str, Any], table: "pyarrow.Table", path: Path) -> None:
    """Draw AUC over hooks into a PNG, a panel a task, with the pool that validation chose."""
    # Here, so that whoever draws nothing does not wait for a plotting library.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [task["name"] for task in summary["tasks"]][:MOST_TASKS]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.1 * rows + 0.7), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.set_facecolor("white")
    records = [one for one in table.to_pylist() if one["chosen"] and one["k"] is None]
    every = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for axes, name in zip(every, names, strict=False):
        _draw(axes, [one for one in records if one["task"] == name], summary["hooks"])
        axes.set_title(_plain(name), fontsize=9, color=_INK, loc="left")
    for axes in every[len(names) :]:
        axes.set_axis_off()
    handles = {t: h for a in every for h, t in zip(*a.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=8,
        frameon=False,
    )  # fmt: skip
    model = str(summary["model"]).rsplit("/", maxsplit=1)[-1]
    figure.suptitle(
        f"What {_plain(model)} knows, layer by layer (AUC on test texts)", fontsize=10
    )
    with atomic_path(path) as temporary, warnings.catch_warnings():
        # Letters that the font has not got are boxes, and no reason to stop.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(temporary, format="png")


def _draw(axes: "Axes", records: Sequence[Row], hooks: Sequence[str]) -> None:
    axes.axhline(0.5, color=_GRID, linewidth=1)
    for inputs, hue in _HUES.items():
        own = sorted((r for r in records if r["inputs"] == inputs), key=lambda r: r["layer"])
        if not own:
            continue
        x, y = [r["layer"] for r in own], [r["auc"] for r in own]
        if inputs == "raw":
            ends = [r["auc_low"] for r in own], [r["auc_high"] for r in own]
            axes.fill_between(x, *ends, color=hue, alpha=0.15, linewidth=0)
        if inputs in ("features", "random_decoder"):
            below = [r["auc"] - r["auc_low"] for r in own]
            above = [r["auc_high"] - r["auc"] for r in own]
            axes.errorbar(
                x, y, (below, above), color=hue, fmt="o", markersize=4, label=_NAMES[inputs]
            )
        else:
            axes.plot(x, y, color=hue, linewidth=1.6, marker=".", label=_NAMES[inputs])
    own = sorted((r for r in records if r["inputs"] == "raw"), key=lambda r: r["layer"])
    floor = [r["permuted_auc"] for r in own]
    axes.plot(
        [r["layer"] for r in own], floor, color=_MUTED, linewidth=1, linestyle=":",
        label="shuffled labels",
    )  # fmt: skip
    axes.set_ylim(0.3, 1.02)
    axes.set_xlabel("hook, in the model's order", fontsize=8, color=_MUTED)
    axes.set_xlim(-0.5, max(1, len(hooks) - 0.5))
    axes.tick_params(colors=_MUTED, labelsize=8, length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _plain(text: str) -> str:
    """Return a text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")
