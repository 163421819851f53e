"""What results show in a notebook: small tables of HTML that need nothing else."""

import html
import sys
from collections.abc import Iterable, Sequence

_MOST_CELLS = 80
"""Characters of a text that a cell shows."""


def in_notebook() -> bool:
    """Return whether a Jupyter kernel runs this, and not a terminal or a script."""
    # Whoever has not imported IPython is not in a notebook; and it takes long to import.
    interactive = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(interactive, "kernel")


def html_table(
    columns: Sequence[str],
    records: Iterable[Sequence[object]],
    *,
    title: str = "",
    note: str = "",
) -> str:
    """Return a table for a notebook, with every text escaped.

    Args:
        columns: headings, or none at all for a list of facts.
        records: a sequence of cells each. Floats are shown with three significant digits.
        title: stands above the table.
        note: stands below it.
    """
    lines = [f"<p><b>{html.escape(title)}</b></p>"] if title else []
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = [f"<tr>{head}</tr>"] if columns else []
    for record in records:
        cells = "".join(f'<td style="text-align:left">{_cell(value)}</td>' for value in record)
        body.append(f"<tr>{cells}</tr>")
    lines.append(f'<div style="overflow-x:auto"><table>{"".join(body)}</table></div>')
    lines += [f"<p>{html.escape(note)}</p>"] if note else []
    return "".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3g}"
    text = str(value)
    return html.escape(text if len(text) <= _MOST_CELLS else f"{text[: _MOST_CELLS - 1]}…")
