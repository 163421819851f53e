"""Files of dashboards from elsewhere, their rows, and the values in these, checked."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sae.atlas import list_lengths
from sae.base import UserError, require

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, object]
MOST_FEATURES = 1 << 22
"""As many as the page of an atlas can order."""
_LONGEST_LINE = 1 << 26
"""Bytes of a row; the longest that were seen have some hundred thousand."""
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


def numbered(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """Return the files `batch-N.ENDING` of a folder in the order of N.

    Raises:
        UserError: for a link that leads out of the folder.
    """
    pattern = re.compile(rf"batch-(\d{{1,9}})\.(?:{'|'.join(map(re.escape, endings))})")
    matches = [(pattern.fullmatch(path.name), path) for path in folder.glob("batch-*")]
    found = sorted((int(match[1]), path) for match, path in matches if match)
    for _, path in found:
        require(
            path.resolve().is_relative_to(folder.resolve()),
            f"{path} is a link that leads out of its folder; put the file itself in its place",
        )
    return [path for _, path in found]


def parsed(content: bytes, where: str) -> Any:
    """Parse JSON as it comes: NaN is taken too, halves of a pair of surrogates are replaced.

    Raises:
        UserError: if it is none.
    """
    import orjson

    try:
        return orjson.loads(content)
    except ValueError:
        pass
    try:
        found = json.loads(content)
        return _whole(found) if _HALF.search(content) else found
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where} is incomplete or not JSON ({error}); download it again"
        ) from error


def _whole(value: object) -> Any:
    """Replace halves of surrogate pairs, which no file of text can hold, in a JSON value."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_whole(each) for each in value]
    if isinstance(value, dict):
        return {_whole(key): _whole(each) for key, each in value.items()}
    return value


def json_lines(path: Path) -> Iterator[Row]:
    """Yield the rows of a file of JSON lines, compressed or not.

    Raises:
        UserError: if the file is missing, cut off or damaged, which line is no object, or that
            one is longer than any row is.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number in count(1):
                line = file.readline(_LONGEST_LINE + 1)
                if not line:
                    return
                where = f"{path}, line {number},"
                require(
                    len(line) <= _LONGEST_LINE,
                    f"{where} is longer than {_LONGEST_LINE >> 20} MB, which no line of "
                    "such a file is",
                )
                if line.strip():
                    row = parsed(line, where)
                    require(
                        isinstance(row, dict),
                        f"{where} is not a JSON object; download it again",
                    )
                    yield row
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} is missing, incomplete or damaged ({error}); download it again"
        ) from error


def feature_number(value: object, where: object) -> int:
    """Return the number of a feature, given as a number or as digits.

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
    """Return what rows have under a word, as an arrow array.

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
    """Refuse lists side by side that are not equally long; `words` are the file's for them.

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
