"""Values in rows of dashboards from elsewhere, checked: numbers of features, and lists."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sae.atlas import list_lengths
from sae.base import UserError, require

if TYPE_CHECKING:
    import pyarrow

MOST_FEATURES = 1 << 22
"""As many as the page of an atlas can order."""

Row = dict[str, object]


def feature_number(value: object, where: object) -> int:
    """The number of a feature, given as a number or as digits.

    Raises:
        UserError: if it is none, or greater than an atlas can have.
    """
    text = str(value) if isinstance(value, int | str) else ""
    good = text.isascii() and text.isdecimal() and len(text) <= 10
    require(
        good and int(text) < MOST_FEATURES,
        f"{where}: {str(value)[:40]!r} is no number of a feature; they run from 0 to "
        f"{MOST_FEATURES - 1:,} at most",
    )
    return int(text)


def column(rows: list[Row], word: str, kind: "pyarrow.DataType", path: Path) -> "pyarrow.Array":
    """What rows have under a word, as an arrow array.

    Raises:
        UserError: if one has something of another kind there.
    """
    found = _array([row.get(word) for row in rows], kind)
    if found is not None:
        return found
    row = next(row for row in rows if _array([row.get(word)], kind) is None)
    number = str(row.get("index", row.get("feature_index")))
    raise UserError(
        f"{path}, feature {number[:40]}: {word} is not {_SAID[str(kind)]} but "
        f"{ascii(row.get(word))[:80]}"
    )


def _array(values: list[object], kind: "pyarrow.DataType") -> "pyarrow.Array | None":
    """As an arrow array; None if one is of another kind."""
    import pyarrow

    # Arrow would take a text for the list of its characters.
    if any(isinstance(value, str) for value in values):
        return None
    try:
        return pyarrow.array(values, kind)
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError):
        return None


_SAID = {
    "double": "a number",
    "int64": "a whole number",
    "list<item: string>": "a list of texts",
    "list<item: float>": "a list of numbers",
    "list<item: double>": "a list of numbers",
    "list<item: int64>": "a list of whole numbers",
}


def check_lengths(
    table: "pyarrow.Table", one: str, other: str, words: tuple[str, str], path: Path
) -> None:
    """Refuse lists that stand beside each other and are not equally long.

    Args:
        words: what the two columns are called in the file.

    Raises:
        UserError: which feature has them.
    """
    wrong = np.flatnonzero(list_lengths(table, one) != list_lengths(table, other))
    if len(wrong):
        feature = table["feature"][int(wrong[0])].as_py()
        raise UserError(
            f"{path}: feature {feature} has lists of different lengths, "
            f"{words[0]} and {words[1]}"
        )
