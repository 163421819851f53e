"""Effects of patching as heat maps, a picture for a README or a paper."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sae.base import atomic_path

if TYPE_CHECKING:
    import pyarrow
    from matplotlib.axes import Axes

_INK, _MUTED, _GRID, _ACCENT = "#14201f", "#5c6866", "#dfe4e2", "#0b6f6a"
_AGAINST, _WITH = "#b34700", "#0a4f8f"
"""Hues of effects of -1 and 1, which every kind of sight tells apart."""
_SITES = {
    "residual": "Residual stream",
    "attention": "Attention",
    "mlp": "MLP",
    "head": "Heads",
}
_METHODS = {
    "exact": "exact patching",
    "relp": "attribution by RelP",
    "ig": "attribution by integrated gradients",
    "plain": "attribution by plain gradients",
}
_PATCHES = {
    "denoising": "clean into corrupt: 1 restores the clean answer",
    "noising": "corrupt into clean: 1 destroys the clean answer",
}
_LABEL_LENGTH = 12


def draw_patching(summary: Mapping[str, Any], table: "pyarrow.Table", path: Path) -> None:
    """Draw the effects of the first group into a PNG, a panel a kind of site.

    Exact effects of denoising, else the attribution that agrees with exact patching best, else
    those of noising. Without any map there is no picture.
    """
    # Here, so that whoever draws nothing does not wait for a plotting library.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    group = summary["groups"][0]
    records = [r for r in table.to_pylist() if r["group"] == group["group"]]
    chosen = _chosen(summary, records)
    if chosen is None:
        return
    method, patch, maps = chosen
    tokens = _shown_tokens(group, maps)
    widths = [
        max(1.9, 0.19 * (summary["n_heads"] if site == "head" else len(tokens)))
        for site in maps
    ]
    size = (1.7 + sum(widths) + 0.45 * len(maps), 2.3 + 0.13 * max(12, summary["n_layers"]))
    spacing = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1, wspace=0.02)
    figure = Figure(figsize=size, dpi=160, facecolor="white", layout=spacing)
    FigureCanvasAgg(figure)
    model = str(summary["model"]).rsplit("/", maxsplit=1)[-1]
    title = f"{summary['name']} in {model}: {_METHODS[method]}, {_PATCHES[patch]}"
    figure.suptitle(_plain(title), color=_INK, fontsize=11, x=0.01, ha="left")
    colours = LinearSegmentedColormap.from_list("effect", [_AGAINST, "white", _WITH])
    colours.set_bad(_GRID)
    all_axes = figure.subplots(1, len(maps), squeeze=False, width_ratios=widths)[0]
    for axes, (site, cells) in zip(all_axes, maps.items(), strict=True):
        values = _grid(summary, site, cells, tokens)
        image = axes.imshow(
            values, cmap=colours, vmin=-1, vmax=1, origin="lower", aspect="auto"
        )
        _style(axes, _SITES[site])
        if site == "head":
            axes.set_xlabel("head", color=_MUTED, fontsize=9)
        else:
            _name_tokens(axes, tokens, set(group["differing"]))
    all_axes[0].set_ylabel("layer", color=_MUTED, fontsize=9)
    bar = figure.colorbar(image, ax=all_axes, extend="both", pad=0.01, fraction=0.02)
    n = max(record["n"] for cells in maps.values() for record in cells)
    bar.set_label(f"effect, mean of {n} pair{'s'[: n != 1]}", color=_MUTED, fontsize=9)
    bar.ax.tick_params(colors=_MUTED, labelsize=8.5, length=0)
    bar.outline.set_edgecolor(_GRID)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


Cells = list[dict[str, Any]]


def _chosen(
    summary: Mapping[str, Any], records: Cells
) -> tuple[str, str, dict[str, Cells]] | None:
    """Return method, direction and the records of each site that are drawn."""
    for patch in _PATCHES:
        for method in ("exact", *_best_first(summary, patch)):
            own = [r for r in records if (r["method"], r["patch"]) == (method, patch)]
            maps = {site: [r for r in own if r["site"] == site] for site in _SITES}
            if any(maps.values()):
                return method, patch, {site: some for site, some in maps.items() if some}
    return None


def _best_first(summary: Mapping[str, Any], patch: str) -> list[str]:
    """Return the attributions by their mean agreement with exact patching, else as listed."""

    def agreement(method: str) -> float:
        own = [
            entry["r"]
            for entry in summary["agreement"]
            if (entry["method"], entry["patch"]) == (method, patch) and entry["r"] is not None
        ]
        return sum(own) / len(own) if own else -1.0

    return sorted(list(_METHODS)[1:], key=agreement, reverse=True)


def _shown_tokens(group: Mapping[str, Any], maps: dict[str, Cells]) -> dict[int, str]:
    """Return the label of every position from the first that was measured to the last."""
    places = [
        record["position"] for site, cells in maps.items() if site != "head" for record in cells
    ]
    if not places:
        return {}
    labels = group["tokens"]
    return {
        place: labels[place] if place < len(labels) else str(place)
        for place in range(min(places), max(places) + 1)
    }


def _grid(
    summary: Mapping[str, Any], site: str, cells: Cells, tokens: dict[int, str]
) -> NDArray[np.float64]:
    """Return the effects, layer by position or head, NaN where nothing was measured."""
    across = "head" if site == "head" else "position"
    first, n = (0, summary["n_heads"]) if site == "head" else (min(tokens), len(tokens))
    values = np.full((summary["n_layers"], n), np.nan)
    for record in cells:
        if record["effect"] is not None:
            values[record["layer"], record[across] - first] = record["effect"]
    return values


def _style(axes: "Axes", title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", color=_INK, fontsize=11, fontweight="bold")
    axes.tick_params(colors=_MUTED, labelsize=8.5, length=0)
    axes.spines[:].set_color(_GRID)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _name_tokens(axes: "Axes", tokens: dict[int, str], differing: set[int]) -> None:
    names = [_label(token) for token in tokens.values()]
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
    for label, position in zip(axes.get_xticklabels(), tokens, strict=True):
        if position in differing:
            label.set(color=_ACCENT, fontweight="bold")


def _label(token: str) -> str:
    text = token.strip().replace("\n", "↵").replace("\t", "⇥") or (
        "↵" if "\n" in token else "␣"
    )
    return _plain(text if len(text) <= _LABEL_LENGTH else f"{text[: _LABEL_LENGTH - 1]}…")


def _plain(text: str) -> str:
    """Text that is not read as mathematics, and has characters that can be drawn alone."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text).replace("$", r"\$")
