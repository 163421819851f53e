"""What lenses say of a text: for a terminal, a notebook, and a page of its own."""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.pages.lens_picture import lens_figure
from sae.pages.page import embedded, filled, plain

if TYPE_CHECKING:
    import pyarrow
    from matplotlib.figure import Figure

_WIDEST = 18
"""Characters of a token that are shown in a terminal."""
_TITLES = {"logit": "Logit lens", "tuned": "Tuned lens"}


@dataclass(frozen=True, slots=True)
class Lens:
    """What a model would predict next after each token of a text, layer by layer.

    A notebook shows it as a grid; `to_pandas()` gives the whole table, `plot()` a picture.
    """

    table: "pyarrow.Table"
    """A record for each kind, layer and position: the columns of `lens.parquet`."""
    model_name: str
    text: str
    judged: Mapping[str, Any] | None = None
    """What the tuned lens and the others cost on held-out text, if there is a tuned one."""
    folder: Path | None = None
    """Where the table, a page and a picture are, if they were written."""

    @property
    def kinds(self) -> list[str]:
        """The lenses there are: `logit`, and perhaps `tuned`."""
        return [*dict.fromkeys(self.table["kind"].to_pylist())]

    @property
    def tokens(self) -> list[str]:
        """The text of each token."""
        (_, first), *_ = self.grid(self.kinds[0])
        return [cell["token"] for cell in first]

    def grid(self, kind: str) -> list[tuple[int, list[dict[str, Any]]]]:
        """Return the layers of a lens from the first on, each with its records by position."""
        import pyarrow.compute as pc

        found: dict[int, list[dict[str, Any]]] = {}
        for cell in self.table.filter(pc.equal(self.table["kind"], kind)).to_pylist():
            found.setdefault(cell["layer"], []).append(cell)
        return [*found.items()]

    @property
    def headline(self) -> str:
        """What the model predicts at the end of the text, and from where on lenses say so."""
        grids = {kind: self.grid(kind) for kind in self.kinds}
        last = grids["logit"][-1][1][-1]
        share = f"{last['top_probabilities'][0]:.0%}"
        said = f"After the last token the model predicts {_quoted(last['own_token'])} ({share})"
        parts = [f"of the {kind} lens {_since(grid)}" for kind, grid in grids.items()]
        return f"{said}, the first choice {' and '.join(parts)}."

    def as_text(self) -> str:
        """Return a line a layer for a terminal: what each lens has first after the text."""
        grids = {kind: dict(self.grid(kind)) for kind in self.kinds}
        names = {layer: layer_name(layer) for layer in grids["logit"]}
        head = f"{'':<10}" + "".join(f"  {_TITLES[kind]:<{_WIDEST + 26}}" for kind in grids)
        column = f"  {'first':<{_WIDEST}}{'p':>7}{'KL':>9}{'rank':>9} "
        lines = [head.rstrip(), (f"{'':<10}" + column * len(grids)).rstrip()]
        for layer, name in names.items():
            cells = [grid.get(layer) for grid in grids.values()]
            told = (_in_terminal(cell[-1]) if cell else "" for cell in cells)
            lines.append((f"{name:<10}" + "".join(told)).rstrip())
        return "\n".join(lines)

    def page(self) -> str:
        """Return a page of HTML that needs nothing else."""
        return filled(
            "lens.html",
            title=html.escape(f"{self.model_name}: {' and '.join(self.kinds)} lens"),
            data=embedded(self.for_page()),
        )

    def for_page(self) -> dict[str, Any]:
        """Return what `lens.js` reads, and as JSON has it."""
        found = {
            "model": self.model_name,
            "text": self.text,
            "headline": self.headline,
            "tokens": self.tokens,
            "judged": self.judged,
            "kinds": [
                {
                    "title": _TITLES[kind],
                    "layers": [
                        {
                            "name": layer_name(layer),
                            "layer": layer,
                            "cells": list(map(_cell, row)),
                        }
                        for layer, row in self.grid(kind)
                    ],
                }
                for kind in self.kinds
            ],
        }
        return {**plain(found)}

    def to_pandas(self) -> Any:
        """Return the whole table: a row for each kind, layer and position."""
        return self.table.to_pandas()

    def plot(self, kind: str = "") -> "Figure":
        """Return a picture of a lens, of the tuned one if there is one and none is named."""
        chosen = kind or self.kinds[-1]
        title = f"{_TITLES[chosen]} of {self.model_name}"
        return lens_figure([(layer_name(i), row) for i, row in self.grid(chosen)], title)

    def __repr__(self) -> str:
        """Return one line: which lenses, of what, and how large."""
        n, kinds = len(self.tokens), " and ".join(self.kinds)
        return (
            f"Lens({kinds}, {self.model_name}, {len(self.grid('logit'))} layers × {n} tokens)"
        )

    def _repr_html_(self) -> str:
        """Return a grid for notebooks, coloured by the probability of the likeliest token."""
        parts = [f"<p>{html.escape(self.headline)}</p>"]
        for kind in self.kinds:
            head = "".join(f"<th>{_code(token)}</th>" for token in self.tokens)
            lines = [
                f"<tr><th>{layer_name(layer)}</th>{''.join(map(_notebook_cell, row))}</tr>"
                for layer, row in reversed(self.grid(kind))
            ]
            table = f"<table><tr><th>{_TITLES[kind]}</th>{head}</tr>{''.join(lines)}</table>"
            parts.append(f'<div style="overflow-x:auto">{table}</div>')
        return "".join(parts)


def layer_name(layer: int) -> str:
    """Return how people call a layer."""
    return "embedding" if layer < 0 else f"block {layer}"


def _since(grid: list[tuple[int, list[dict[str, Any]]]]) -> str:
    """Say from which layer on the model's own token is the likeliest after the last token."""
    first = len(grid)
    while first and grid[first - 1][1][-1]["own_rank"] == 1:
        first -= 1
    return f"from {layer_name(grid[first][0])} on" if first < len(grid) else "at no layer"


def _quoted(token: str) -> str:
    # The space before a word would look like a slip.
    return f"“{_visible(token).strip() or _visible(token)}”"


def _visible(token: str) -> str:
    """Return a token in one line."""
    return "".join(c if c.isprintable() else {"\n": "↵", "\t": "⇥"}.get(c, "�") for c in token)


def _in_terminal(cell: Mapping[str, Any]) -> str:
    token = _visible(cell["top_tokens"][0])
    token = token if len(token) <= _WIDEST else f"{token[: _WIDEST - 1]}…"
    figures = f"{cell['top_probabilities'][0]:>7.1%}{cell['kl']:>9.3f}{cell['own_rank']:>9,}"
    return f"  {token:<{_WIDEST}}{figures} "


def _cell(cell: Mapping[str, Any]) -> list[Any]:
    """Return a record as `lens-grid.js` has it: likeliest tokens, KL, rank, log-probability."""
    top = zip(cell["top_tokens"], cell["top_probabilities"], strict=True)
    figures = cell["kl"], cell["own_rank"], cell["own_log_probability"], cell["own_token"]
    return [[list(one) for one in top], *figures]


def _code(token: str) -> str:
    return f"<code>{html.escape(_visible(token))}</code>"


def _notebook_cell(cell: Mapping[str, Any]) -> str:
    share = cell["top_probabilities"][0]
    title = html.escape(f"{share:.1%}, KL {cell['kl']:.3f}, rank {cell['own_rank']:,}")
    style = f"background:rgba(11,130,122,{0.6 * share:.3f})"
    return f'<td style="{style}" title="{title}">{_code(cell["top_tokens"][0])}</td>'
