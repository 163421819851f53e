"""`labels.csv`: what every feature is called, automatic until a person writes something else.

A record a feature: its number, its label, and a longer explanation (empty until somebody writes
one). The automatic labels are in `features.parquet` as well, so that what differs from them is
known to be a person's.
"""

import csv
import io
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sae.atlas.record import RECORD_FILE
from sae.atlas.schema import FEATURES
from sae.base import UserError, read_json, require, write_text

LABELS_FILE = "labels.csv"
_COLUMNS = ("feature", "label", "explanation")
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""Cells that a spreadsheet would compute; an apostrophe before them makes them text."""


@dataclass(frozen=True, slots=True)
class Labels:
    """What features are called; each list has an entry a feature."""

    automatic: list[str]
    label: list[str]
    explanation: list[str]

    @classmethod
    def all_automatic(cls, automatic: list[str]) -> "Labels":
        """Labels to which nobody has added anything."""
        return cls(automatic, list(automatic), [""] * len(automatic))

    @property
    def by_hand(self) -> list[int]:
        """Features whose label is not the automatic one."""
        pairs = enumerate(zip(self.automatic, self.label, strict=True))
        return [feature for feature, (automatic, label) in pairs if automatic != label]

    @property
    def touched(self) -> bool:
        """Whether a person wrote a label or an explanation."""
        return bool(self.by_hand) or any(self.explanation)


def read_labels(folder: Path) -> Labels:
    """The labels of the atlas in `folder`: what `labels.csv` says, else the automatic ones.

    The file may come back from a spreadsheet: with a byte order mark, semicolons or tabs, other
    line ends, another order, rows missing (those features keep their automatic label, as do
    those with an empty one).

    Raises:
        UserError: if a line is broken (which one, and why), or the feature table is missing or
            damaged.
    """
    automatic = FEATURES.read(folder, ["label"])["label"].to_pylist()
    labels = Labels.all_automatic(automatic)
    path = folder / LABELS_FILE
    if path.exists():
        for feature, label, explanation in _rows(path, len(automatic)):
            labels.label[feature] = label or automatic[feature]
            labels.explanation[feature] = explanation
    return labels


def write_labels(folder: Path, labels: Labels) -> None:
    """Write `labels.csv`, whole or not at all; lone surrogates become �."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for feature, cells in enumerate(zip(labels.label, labels.explanation, strict=True)):
        writer.writerow([feature, *map(_protected, cells)])
    content = text.getvalue().encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    write_text(folder / LABELS_FILE, content)


def set_label(folder: Path, feature: int, label: str) -> Labels:
    """Give one feature a label in `labels.csv`; an empty one restores the automatic label.

    The file is read first, so that what was edited in it meanwhile stays.

    Raises:
        UserError: as `read_labels`, and for a feature that the atlas does not have.
    """
    labels = read_labels(folder)
    last = len(labels.label) - 1
    require(0 <= feature <= last, f"feature={feature}; the atlas has features 0 to {last}")
    labels.label[feature] = " ".join(label.split()) or labels.automatic[feature]
    write_labels(folder, labels)
    return labels


def carry_labels(old: Path, new: Path, automatic: list[str], dictionary_digest: str) -> Labels:
    """Write `labels.csv` of a new atlas, with what people wrote into the one it replaces.

    If that was of the same dictionary, labels by hand and explanations go over. If it was of
    another, they mean other features: the file is kept beside, as `labels-{its digest}.csv`.

    Args:
        old: folder of the atlas that will be replaced; need not exist.
        new: folder in which the new atlas is being written.
        automatic: the new automatic labels.
        dictionary_digest: of the new atlas.

    Raises:
        UserError: if the file of the same dictionary has a broken line.
    """
    labels = Labels.all_automatic(automatic)
    for kept in sorted(old.glob("labels-*.csv")):
        shutil.copy2(kept, new / kept.name)
    if (old / LABELS_FILE).exists():
        digest = _digest(old)
        if digest == dictionary_digest:
            _carry(read_labels(old), labels)
        elif _worth_keeping(old):
            shutil.copy2(old / LABELS_FILE, _unused(new, f"labels-{digest}"))
    write_labels(new, labels)
    return labels


def _carry(before: Labels, labels: Labels) -> None:
    for feature in before.by_hand:
        labels.label[feature] = before.label[feature]
    labels.explanation[:] = before.explanation


def _digest(folder: Path) -> str:
    """Return the digest of the dictionary that an atlas is of, whatever its format."""
    try:
        return str(read_json(folder / RECORD_FILE)["dictionary_digest"])
    except (UserError, KeyError, TypeError):
        return "unknown"


def _worth_keeping(folder: Path) -> bool:
    """Whether a person wrote into `labels.csv`, or it cannot be told."""
    try:
        return read_labels(folder).touched
    except UserError:
        return True


def _unused(folder: Path, stem: str) -> Path:
    path, number = folder / f"{stem}.csv", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}.csv", number + 1
    return path


def _protected(cell: str) -> str:
    return f"'{cell}" if _FORMULA.match(cell) else cell


def _unprotected(cell: str) -> str:
    cell = cell.strip()
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _rows(path: Path, d_sae: int) -> Iterator[tuple[int, str, str]]:
    """Feature, label and explanation of every row of a file that people edit."""
    text = _text(path)
    delimiter = next((d for d in ",;\t" if d in text.split("\n", 1)[0]), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    places: list[int] = []
    seen: dict[int, int] = {}
    line = 1
    try:
        for cells in reader:
            where = f"{path}, line {line}"
            line = reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not places:
                places = _header(cells, where)
                continue
            feature, label, explanation = _cells(cells, places, where)
            number = _feature(feature, d_sae, where)
            require(
                number not in seen,
                f"{where}: feature {number} has a row already, at line {seen.get(number)}; "
                "keep one of them",
            )
            seen[number] = reader.line_num
            yield number, label, explanation
    except csv.Error as error:
        raise UserError(
            f"{path}, line {line}: {error}; a quotation mark in a cell is written twice, and "
            "the cell in quotation marks"
        ) from error


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: not UTF-8; save the file as CSV with encoding UTF-8"
        ) from error


def _header(cells: list[str], where: str) -> list[int]:
    """Where the columns are; −1 for explanations that are not there."""
    names = [cell.strip().lower() for cell in cells]
    wanted = ",".join(_COLUMNS)
    for name in filter(None, names):
        require(
            name in _COLUMNS and names.count(name) == 1,
            f"{where}: column {name!r} is unknown or there twice; the first line is {wanted}",
        )
    for name in _COLUMNS[:2]:
        require(name in names, f"{where}: no column {name!r}; the first line is {wanted}")
    return [names.index(name) if name in names else -1 for name in _COLUMNS]


def _cells(cells: list[str], places: list[int], where: str) -> list[str]:
    """Return the cells of the known columns, without the protection from spreadsheets."""
    beyond = [cell for place, cell in enumerate(cells) if place not in places and cell.strip()]
    require(
        not beyond,
        f"{where}: {beyond[:1]} is in no column; put a cell with a comma in quotation marks",
    )
    return [_unprotected(cells[p]) if 0 <= p < len(cells) else "" for p in places]


def _feature(cell: str, d_sae: int, where: str) -> int:
    require(
        cell.isascii() and cell.isdecimal() and int(cell) < d_sae,
        f"{where}: {cell!r} is no feature of this atlas; give a number from 0 to {d_sae - 1}",
    )
    return int(cell)
