"""The grid of a lens as a picture: layers over positions, the likeliest token in each cell."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.base import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK, _MUTED, _GRID = "#14201f", "#5c6866", "#dfe4e2"
_SHADES = ("#fcfcfa", "#0b827a")
_MOST_POSITIONS = 24
"""Positions that a picture has room for, the last ones of a longer text."""
_LONGEST = 9
"""Characters of a token that a cell has room for."""

Row = tuple[str, Sequence[Mapping[str, Any]]]
"""The name of a layer, and its records by position."""


def lens_figure(rows: Sequence[Row], title: str) -> "Figure":
    """Draw a lens: a row a layer, the last one on top, shaded by the highest probability.

    In bold is what the model itself predicts there.
    """
    # Here, so that whoever draws nothing does not wait for a plotting library.
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from sae.base.picture import Picture

    n = len(rows[0][1])
    places = range(max(0, n - _MOST_POSITIONS), n)
    shares = [[row[i]["top_probabilities"][0] for i in places] for _, row in rows]
    size = (1.9 + 0.72 * max(5, len(places)), 1.5 + 0.235 * len(rows))
    figure = Picture(*size, layout=ConstrainedLayoutEngine())
    axes = figure.subplots()
    shades = LinearSegmentedColormap.from_list("shades", _SHADES)
    drawn = axes.imshow(shares, cmap=shades, vmin=0, vmax=1, aspect="auto", origin="lower")
    for y, (_, row) in enumerate(rows):
        for x, i in enumerate(places):
            cell = row[i]
            axes.text(
                x,
                y,
                _label(cell["top_tokens"][0]),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if cell["top_probabilities"][0] > 0.55 else _INK,
                fontweight="bold" if cell["own_rank"] == 1 else "normal",
                parse_math=False,
            )
    axes.set_xticks(range(len(places)), [_label(rows[0][1][i]["token"]) for i in places])
    for label in axes.get_xticklabels():
        label.set_parse_math(False)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.tick_params(colors=_MUTED, labelsize=7.5, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    shown = "" if len(places) == n else f", the last {len(places)} of {n:,} tokens"
    text = f"{title}{shown}: likeliest next token, bold where it is the model's own"
    axes.set_title(text, loc="left", fontsize=9, color=_INK, parse_math=False, wrap=True)
    bar = figure.colorbar(drawn, ax=axes, fraction=0.02, pad=0.015)
    bar.set_label("its probability", color=_MUTED, fontsize=8)
    bar.ax.tick_params(colors=_MUTED, labelsize=7)
    bar.outline.set_edgecolor(_GRID)
    return figure


def draw_lens(figure: "Figure", path: Path) -> None:
    """Write a picture into a PNG."""
    import warnings

    with warnings.catch_warnings(), atomic_path(path) as temporary:
        # A token in a script that the fonts at hand have no letters of is drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(temporary, format="png")


def _label(token: str) -> str:
    """Return a token that fits a cell, what cannot be printed shown."""
    shown = "".join(c if c.isprintable() else "↵" if c == "\n" else "·" for c in token)
    shown = f"·{shown[1:]}" if shown.startswith(" ") and not shown.strip() else shown.strip()
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"
