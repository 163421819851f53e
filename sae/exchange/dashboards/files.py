"""Files of dashboards from elsewhere: which there are, and their lines."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from sae.base import UserError, require

_LONGEST_LINE = 1 << 26
"""Bytes of a row; the longest that were seen have some hundred thousand."""

_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


def numbered(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """The files `batch-N.ENDING` of a folder in the order of N.

    Raises:
        UserError: for a link that leads out of the folder.
    """
    pattern = re.compile(rf"batch-(\d{{1,9}})\.(?:{'|'.join(map(re.escape, endings))})")
    matches = [(pattern.fullmatch(path.name), path) for path in folder.glob("batch-*")]
    found = sorted((int(match[1]), path) for match, path in matches if match)
    for _, path in found:
        require(
            path.resolve().is_relative_to(folder.resolve()),
            f"{path} is a link that leads out of its folder; put the file itself there",
        )
    return [path for _, path in found]


def parsed(content: bytes, where: str) -> Any:
    """JSON as it comes: NaN is taken too, and halves of a pair of surrogates are replaced.

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
        raise UserError(f"{where} is cut off or no JSON ({error}); fetch it again") from error


def _whole(value: object) -> Any:
    """Replace halves of surrogate pairs, which no file of text can hold, in a JSON value."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_whole(each) for each in value]
    if isinstance(value, dict):
        return {_whole(key): _whole(each) for key, each in value.items()}
    return value


def json_lines(path: Path) -> Iterator[dict[str, object]]:
    """The rows of a file of JSON lines, compressed or not.

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
                    f"{where} is longer than {_LONGEST_LINE >> 20} MB; no row of these is",
                )
                if line.strip():
                    row = parsed(line, where)
                    require(isinstance(row, dict), f"{where} is no JSON object; fetch it again")
                    yield row
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} is missing, cut off or damaged ({error}); fetch it again"
        ) from error
