"""The page of activation patching: maps of effects, and how far to trust them."""

import html
import os
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sae.atlas import read_labels
from sae.base import write_text
from sae.pages.page import embedded, filled, plain

if TYPE_CHECKING:
    import pyarrow

MOST_FEATURES = 24
"""Single features that are shown, the strongest of each method and direction."""
_SERIES = ("method", "patch", "site", "receiver", "group")
_PLACE = ("layer", "head", "position", "feature")
_FIGURES = ("effect", "low", "high", "n")
_MORE = "…"
"""Ends the label of a token that is another one in other pairs."""

Summary = Mapping[str, Any]
"""`summary.json` of patching, or a group of it."""
Record = dict[str, Any]


def write_patching_page(folder: Path, summary: Summary, table: "pyarrow.Table") -> None:
    """Write `index.html` into a folder: what patching found, whole and opened from disk.

    What the table has no records of is left out of the page. Commands on it name the folder
    that `summary["folder"]` says; `summary["dictionary"]["atlas"]` is the address of an atlas
    as seen from the page.
    """
    report = dict(summary)
    report["folder"] = shlex.quote(str(summary.get("folder") or "RUN_FOLDER"))
    report["groups"] = [{**group, "rows": lined_up(group)} for group in summary["groups"]]
    report["effects"] = list(_series(table))
    page = filled(
        "patching.html",
        title=html.escape(f"{summary['name']}: patching of {summary['model']}"),
        report=embedded(plain(report)),
    )
    write_text(folder / "index.html", page)


def with_labels(dictionary: Mapping[str, Any], atlas: Path, folder: Path) -> Record:
    """Return what is told of a dictionary with the names of its features, if it has an atlas.

    Args:
        dictionary: as the summary has it, with the `code_changes` of the features.
        atlas: where its atlas would be.
        folder: of the page, which leads to it.
    """
    if not (atlas / "index.html").exists():
        return dict(dictionary)
    label = read_labels(atlas).label
    names = {feature: label[int(feature)] for feature in dictionary["code_changes"]}
    address = Path(os.path.relpath(atlas / "index.html", folder)).as_posix()
    return {**dictionary, "labels": names, "atlas": quote(address)}


def _series(table: "pyarrow.Table") -> Iterator[Record]:
    """Give the records that share all but their place as columns, without the empty ones."""
    found: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for record in table.select([*_SERIES, *_PLACE, *_FIGURES]).to_pylist():
        found[tuple(record[name] for name in _SERIES)].append(record)
    for key, records in found.items():
        about = dict(zip(_SERIES, key, strict=True))
        shown = records
        if about["site"] == "feature":
            shown = sorted(records, key=lambda one: -abs(one["effect"]))[:MOST_FEATURES]
        columns = {name: [one[name] for one in shown] for name in (*_PLACE, *_FIGURES)}
        kept = {
            name: some for name, some in columns.items() if any(v is not None for v in some)
        }
        yield {**about, "of": len(records), **kept}


def lined_up(group: Summary) -> dict[str, list[Record]] | None:
    """Return the tokens of a group's two prompts, cell under cell.

    Tokens that differ are told from the text of the corrupt prompt: what stands there between
    the shared ones, one cell for neighbours. Without `corrupt_tokens`, and if the text does not
    lead to them, there is nothing.
    """
    tokens = [_first_pair(label) for label in group["tokens"]]
    differing = set(group["differing"])
    clean = [_cell(token, i in differing) for i, token in enumerate(tokens)]
    if group.get("corrupt_tokens"):
        given = enumerate(group["corrupt_tokens"])
        return {"clean": clean, "corrupt": [_cell(one, i in differing) for i, one in given]}
    before, shared, after = "".join(tokens).partition(group["clean"])
    if not shared:
        return None
    corrupt = _told_apart(before + group["corrupt"] + after, tokens, differing)
    return {"clean": clean, "corrupt": corrupt} if corrupt else None


def _cell(text: str, differs: bool, span: int = 1) -> Record:
    return {"text": text, "differs": differs, "span": span}


def _first_pair(label: str) -> str:
    return label.removesuffix(_MORE) if len(label) > 1 else label


def _told_apart(text: str, tokens: list[str], differing: set[int]) -> list[Record]:
    """Return the cells of a text that has the tokens but for those that differ."""
    runs = [list(run) for _, run in groupby(range(len(tokens)), key=differing.__contains__)]
    literal = ["".join(tokens[i] for i in run) for run in runs]
    cells, start = [], 0
    for i, run in enumerate(runs):
        if run[0] not in differing:
            if not text.startswith(literal[i], start):
                return []
            cells += [_cell(tokens[place], False) for place in run]
            start += len(literal[i])
            continue
        if i + 2 < len(runs):
            end = text.find(literal[i + 1], start + 1)
        else:
            end = len(text) - sum(map(len, literal[i + 1 :]))
        if end <= start:
            return []
        cells.append(_cell(text[start:end], True, len(run)))
        start = end
    return cells if start == len(text) else []
