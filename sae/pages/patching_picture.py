"""Effects of patching as heat maps, a picture for a README or a paper."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sae.base import atomic_path
from sae.pages.patching import Record, Summary

if TYPE_CHECKING:
    import pyarrow
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

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
_WIDEST = 16
"""Inches of maps side by side; wider ones stand below one another."""

Cells = list[Record]


def draw_patching(summary: Summary, table: "pyarrow.Table", path: Path) -> None:
    """Draw the effects of the first group into a PNG, a panel a kind of site.

    Exact effects of denoising, else the attribution that agrees with exact patching best, else
    those of noising. Without any map there is no picture.
    """
    # Here, so that whoever draws nothing does not wait for a plotting library.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    chosen = _chosen(summary, table)
    if chosen is None:
        return
    method, patch, maps = chosen
    group = summary["groups"][0]
    tokens = _shown_tokens(group, maps)
    wide = [
        max(1.9, 0.19 * (summary["n_heads"] if site == "head" else len(tokens)))
        for site in maps
    ]
    high = 1.2 + 0.13 * max(12, summary["n_layers"])
    spacing = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1, wspace=0.02)
    figure = Figure(dpi=160, facecolor="white", layout=spacing)
    FigureCanvasAgg(figure)
    if sum(wide) > _WIDEST:
        figure.set_size_inches(2.2 + max(wide), 1.1 + high * len(maps))
        all_axes = figure.subplots(len(maps), 1, squeeze=False)[:, 0]
    else:
        figure.set_size_inches(1.7 + sum(wide) + 0.45 * len(maps), 1.3 + high)
        all_axes = figure.subplots(1, len(maps), squeeze=False, width_ratios=wide)[0]
    model = str(summary["model"]).rsplit("/", maxsplit=1)[-1]
    about = f"{_plain(str(summary['name']))} in {_plain(model)}"
    title = f"{about}\n{_METHODS[method]}, {_PATCHES[patch]}"
    figure.suptitle(title, color=_INK, fontsize=11, x=0.01, ha="left")
    for axes, (site, cells) in zip(all_axes, maps.items(), strict=True):
        image = _draw(axes, _grid(summary, site, cells, tokens), _SITES[site])
        if site == "head":
            axes.set_xlabel("head", color=_MUTED, fontsize=9)
        else:
            _name_tokens(axes, tokens, set(group["differing"]))
    bar = figure.colorbar(image, ax=all_axes, extend="both", pad=0.01, fraction=0.02)
    n = max(record["n"] for cells in maps.values() for record in cells)
    bar.set_label(f"effect, mean of {n} pairs" if n > 1 else "effect in one pair", color=_MUTED)
    bar.ax.tick_params(colors=_MUTED, labelsize=8.5, length=0)
    bar.outline.set_edgecolor(_GRID)
    with atomic_path(path) as temporary, warnings.catch_warnings():
        # Tokens of some scripts are drawn as boxes; all of them are on the page.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(temporary, format="png")


def _chosen(
    summary: Summary, table: "pyarrow.Table"
) -> tuple[str, str, dict[str, Cells]] | None:
    """Return method, direction and the records of each site that are drawn."""
    first = [group["group"] for group in summary["groups"][:1]]
    records = [
        record
        for record in table.to_pylist()
        if record["group"] in first and record["site"] in _SITES
    ]
    for patch in _PATCHES:
        for method in ("exact", *_best_first(summary, patch)):
            own = [r for r in records if (r["method"], r["patch"]) == (method, patch)]
            if own:
                maps = {site: [r for r in own if r["site"] == site] for site in _SITES}
                return method, patch, {site: some for site, some in maps.items() if some}
    return None


def _best_first(summary: Summary, patch: str) -> list[str]:
    """Return the attributions by their mean agreement with exact patching, else as listed."""

    def agreement(method: str) -> float:
        own = [
            entry["r"]
            for entry in summary["agreement"]
            if (entry["method"], entry["patch"]) == (method, patch) and entry["r"] is not None
        ]
        return sum(own) / len(own) if own else -1.0

    return sorted(list(_METHODS)[1:], key=agreement, reverse=True)


def _shown_tokens(group: Summary, maps: dict[str, Cells]) -> dict[int, str]:
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
    summary: Summary, site: str, cells: Cells, tokens: dict[int, str]
) -> NDArray[np.float64]:
    """Return the effects, layer by position or head, NaN where nothing was measured."""
    across = "head" if site == "head" else "position"
    first, n = (0, summary["n_heads"]) if site == "head" else (min(tokens), len(tokens))
    values = np.full((summary["n_layers"], n), np.nan)
    for record in cells:
        if record["effect"] is not None:
            values[record["layer"], record[across] - first] = record["effect"]
    return values


def _draw(axes: "Axes", values: NDArray[np.float64], title: str) -> "AxesImage":
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import MaxNLocator

    scale = LinearSegmentedColormap.from_list("effect", [_AGAINST, "white", _WITH])
    colours = scale.with_extremes(bad=_GRID)
    axes.set_title(title, loc="left", color=_INK, fontsize=11, fontweight="bold")
    axes.set_ylabel("layer", color=_MUTED, fontsize=9)
    axes.tick_params(colors=_MUTED, labelsize=8.5, length=0)
    axes.spines[:].set_color(_GRID)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return axes.imshow(values, cmap=colours, vmin=-1, vmax=1, origin="lower", aspect="auto")


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
