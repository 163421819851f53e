"""`labels.csv`: what every feature is called, automatic until a person writes something else.

The automatic labels are in `features.parquet` as well, so that what differs from them is known
to be a person's.
"""

import csv
import io
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sae.atlas.record import RECORD_FILE, read_record
from sae.atlas.schema import FEATURES
from sae.base import (
    UserError,
    exchange,
    locked,
    read_json,
    require,
    say,
    write_text,
)

LABELS_FILE = "labels.csv"
_COLUMNS = ("feature", "label", "explanation")
_BLANK_LETTERS = "\u115f\u1160\u2800\u3164\uffa0"
"""Letters and signs that are drawn as nothing, which their category does not tell."""


@dataclass(frozen=True, slots=True)
class Labels:
    """What features are called; each list has an entry a feature."""

    automatic: list[str]
    label: list[str]
    explanation: list[str]

    @classmethod
    def all_automatic(cls, automatic: list[str]) -> "Labels":
        """Return labels to which nobody has added anything."""
        return cls(automatic, list(automatic), [""] * len(automatic))

    @property
    def by_hand(self) -> list[int]:
        """The features whose label is not the automatic one."""
        return [i for i, label in enumerate(self.label) if label != self.automatic[i]]

    @property
    def touched(self) -> bool:
        """Whether a person wrote a label or an explanation."""
        return bool(self.by_hand) or any(self.explanation)


def read_labels(folder: Path, automatic: list[str] | None = None) -> Labels:
    """Return the labels of the atlas in `folder`: of `labels.csv`, else the automatic ones.

    The file may come back from a spreadsheet: with a byte order mark, semicolons or tabs, other
    line ends, another order, records missing (those features keep their automatic label, as do
    those with an empty one).

    Args:
        automatic: the automatic labels; those in the feature table if left out.

    Raises:
        UserError: if a line is broken, or the feature table is missing or damaged.
    """
    if automatic is None:
        automatic = FEATURES.read(folder, ["label"])["label"].to_pylist()
    labels = Labels.all_automatic(automatic)
    path = folder / LABELS_FILE
    if path.exists():
        for feature, label, explanation in _records(path, len(automatic)):
            labels.label[feature] = label or automatic[feature]
            labels.explanation[feature] = explanation
    return labels


def write_labels(folder: Path, labels: Labels) -> None:
    """Write `labels.csv`, whole or not at all; lone surrogates become �."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for feature, cells in enumerate(zip(labels.label, labels.explanation, strict=True)):
        writer.writerow([feature, *(f"'{c}" if _is_formula(c) else c for c in cells)])
    content = text.getvalue().encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    write_text(folder / LABELS_FILE, content)


def set_label(folder: Path, feature: int, label: str) -> Labels:
    """Give one feature a label in `labels.csv`; an empty one restores the automatic label.

    Raises:
        UserError: if a line of the file is broken, or the atlas does not have the feature.
    """
    with locked(_lock(folder)):
        # Read first, so that what was edited meanwhile stays.
        labels = read_labels(folder)
        last = len(labels.label) - 1
        require(0 <= feature <= last, f"feature={feature}; the atlas has features 0 to {last}")
        labels.label[feature] = _in_sight(label) or labels.automatic[feature]
        write_labels(folder, labels)
    return labels


def _lock(folder: Path) -> Path:
    """Lock of whoever changes labels, or replaces their atlas; it is held for a moment."""
    place = folder.resolve()
    return place.parent / f".{place.name}.labels.lock"


def carry_labels(old: Path, new: Path, automatic: list[str], dictionary_digest: str) -> Labels:
    """Write `labels.csv` of a new atlas, with what people wrote into the one it replaces.

    If that was of the same dictionary, labels by hand and explanations go over. If it was of
    another, they mean other features: the file is kept beside, as `labels-{its digest}.csv`.

    Raises:
        UserError: if the file of the same dictionary has a broken line.
    """
    labels = Labels.all_automatic(automatic)
    for kept in sorted(old.glob("labels-*.csv")):
        if not (new / kept.name).exists():
            shutil.copy2(kept, new / kept.name)
    if (old / LABELS_FILE).exists():
        digest, touched = "unknown", True
        with suppress(UserError, KeyError, TypeError):
            # That of an atlas of any format.
            digest = str(read_json(old / RECORD_FILE)["dictionary_digest"])
        if digest == dictionary_digest:
            before = _labels_before(old, automatic)
            for feature in before.by_hand:
                labels.label[feature] = before.label[feature]
            labels.explanation[:] = before.explanation
        else:
            # A file that cannot be read may have been edited too.
            with suppress(UserError):
                touched = read_labels(old).touched
            if touched:
                _keep(old / LABELS_FILE, new, digest)
    write_labels(new, labels)
    return labels


def _is_blank(character: str) -> bool:
    kind = unicodedata.category(character)
    return kind[0] == "Z" or kind in ("Cc", "Cf", "Cs") or character in _BLANK_LETTERS


def _is_formula(cell: str) -> bool:
    """Return whether a spreadsheet may compute the cell; an apostrophe before it makes it text.

    Programs drop what is not seen before a sign, and take a sign of full width for the plain
    one; a tab or a line end may move what follows into a cell of its own.
    """
    text = cell.lstrip("'")
    if text[:1] in ("\t", "\r", "\n"):
        return True
    seen = (c for c in text if c != "'" and not _is_blank(c))
    # A mark without a letter to stand on is not seen either.
    first = next((c for c in seen if unicodedata.category(c)[0] != "M"), "")
    return unicodedata.normalize("NFKC", first)[:1] in ("=", "+", "-", "@", "\u2212")


def _in_sight(label: str) -> str:
    """Return the label in one line that begins with something to be seen, or nothing."""
    text = " ".join(label.split())
    return text[next((i for i, c in enumerate(text) if not _is_blank(c)), len(text)) :]


def _labels_before(old: Path, automatic: list[str]) -> Labels:
    """Return labels of an atlas of the same dictionary, even if its own table is damaged.

    Whatever is not what the new atlas would call a feature is then taken for a person's.
    """
    try:
        FEATURES.check(old)
    except UserError:
        return read_labels(old, automatic)
    return read_labels(old)


def _keep(file: Path, folder: Path, digest: str) -> Path:
    """Keep a file of labels in a folder beside others, unless it is there already."""
    stem, number = folder / f"labels-{digest}", 2
    path = stem.with_name(f"{stem.name}.csv")
    while path.exists() and path.read_bytes() != file.read_bytes():
        path, number = stem.with_name(f"{stem.name}-{number}.csv"), number + 1
    shutil.copy2(file, path)
    return path


def replace_atlas(new: Path, old: Path, show: Callable[[Path, Labels], None]) -> None:
    """Put a new atlas, whole but for its labels, in the place of an old one.

    What people wrote into the old one's labels, up to this moment, goes over. What an editor
    saves in the very moment is kept beside, as `labels-DIGEST.csv`.

    Args:
        show: writes labels for the pages in a folder.

    Raises:
        UserError: if the file of the same dictionary has a broken line.
    """
    record = read_record(new)
    automatic = FEATURES.read(new, ["label"])["label"].to_pylist()
    with locked(_lock(old)):
        seen = _content(old)
        show(new, carry_labels(old, new, automatic, record.dictionary_digest))
        exchange(new, old)
        if _content(new) not in (seen, b""):
            kept = _keep(new / LABELS_FILE, old, record.dictionary_digest)
            say(f"analyze: the labels that were saved while {old} was replaced are in {kept}")


def _content(folder: Path) -> bytes:
    path = folder / LABELS_FILE
    return path.read_bytes() if path.exists() else b""


def _records(path: Path, d_sae: int) -> Iterator[tuple[int, str, str]]:
    places: list[int] = []
    seen: dict[int, int] = {}
    for line, cells in _lines(path):
        where = f"{path}, line {line}"
        if not places:
            places = _places(cells, where)
            continue
        beyond = [cell for i, cell in enumerate(cells) if i not in places and cell.strip()]
        require(
            not beyond,
            f"{where}: {beyond[:1]} belongs to no column; put a cell that contains a comma "
            "in quotation marks",
        )
        found = [cells[i].strip() if 0 <= i < len(cells) else "" for i in places]
        # Without the apostrophe that keeps a spreadsheet from computing a cell.
        cell, *texts = (c[1:] if c[:1] == "'" and _is_formula(c) else c for c in found)
        require(
            cell.isascii() and cell.isdecimal() and int(cell) < d_sae,
            f"{where}: {cell!r} is not a feature of this atlas; give a number from 0 to "
            f"{d_sae - 1}",
        )
        feature = int(cell)
        require(
            feature not in seen,
            f"{where}: feature {feature} is already described in line {seen.get(feature)}; "
            "keep one of them",
        )
        seen[feature] = line
        yield feature, texts[0], texts[1]


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: the text is not UTF-8; save the file as CSV with the "
            "encoding UTF-8"
        ) from error
    delimiter = next((d for d in ",;\t" if d in text.split("\n", 1)[0]), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {line}: {error}; put the cell in quotation marks, and write a "
            "quotation mark inside it twice"
        ) from error


def _places(header: list[str], where: str) -> list[int]:
    # −1 for explanations that are not there.
    names = [cell.strip().lower() for cell in header]
    wanted = ",".join(_COLUMNS)
    for name in filter(None, names):
        require(
            name in _COLUMNS and names.count(name) == 1,
            f"{where}: column {name!r} is unknown or occurs twice; the first line must be "
            f"{wanted}",
        )
    for name in _COLUMNS[:2]:
        require(name in names, f"{where}: no column {name!r}; the first line is {wanted}")
    return [names.index(name) if name in names else -1 for name in _COLUMNS]
