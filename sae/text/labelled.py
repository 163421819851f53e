"""Texts with one of two labels each: what a probe is trained and tested on.

A task is a table of texts and labels, a file here or a data set of the Hub, or one of those
that are at hand: `noun-or-verb`, and by `sae-probes:NAME` those of that package's data sets
whose labels are two. Where a table has the columns `start` and `end`, each text is asked about
the token that ends there; a column `split` that says `train` and `test` is kept to.
"""

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sae.base import UserError, digest, nearest, require
from sae.base.assets import package_folder
from sae.base.names import check_names
from sae.text.embedded import SAE_PROBES
from sae.text.files import kind_of, rows_of
from sae.text.rows import Unreadable, is_whole
from sae.text.tables import what_it_said

NOUN_OR_VERB = "noun-or-verb"
SAE_PROBES_PREFIX = "sae-probes:"
_MOST_ROWS = 50_000
"""Of a longer table the first so many rows are read."""
_SPLITS = ("train", "test")
_FEWEST = 2
"""Texts of each label that training and testing need at least."""

Span = tuple[int, int]
"""First character and the one behind the last, of what in a text is asked about."""
Values = Mapping[str, object]


@dataclass(frozen=True)
class LabelledTexts:
    """Texts of two classes."""

    name: str
    texts: tuple[str, ...]
    labels: NDArray[np.bool_]
    """Whether each text is of the second class, (text,)."""
    classes: tuple[str, str]
    """The labels as they were written, in their order of letters."""
    spans: tuple[Span, ...] | None = None
    """What of each text is asked about; None where it is the text."""
    is_test: NDArray[np.bool_] | None = None
    """Which texts are to be tested on, where that is given, (text,)."""

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def words(self) -> tuple[str, ...] | None:
        """The characters that are asked about; None where it is the text."""
        if self.spans is None:
            return None
        both = zip(self.texts, self.spans, strict=True)
        return tuple(text[start:end] for text, (start, end) in both)

    @cached_property
    def digest(self) -> str:
        """Identifies texts, labels and spans."""
        return digest([self.texts, self.labels.tolist(), self.classes, self.spans])

    def of(self, rows: NDArray[np.intp]) -> "LabelledTexts":
        """Return some of the texts, in this order."""
        spans = None if self.spans is None else tuple(self.spans[i] for i in rows)
        texts = tuple(self.texts[i] for i in rows)
        return LabelledTexts(self.name, texts, self.labels[rows], self.classes, spans)

    def drawn(
        self, n_train: int, n_test: int, seed: int
    ) -> tuple["LabelledTexts", "LabelledTexts"]:
        """Return texts to train on and others to test on, as many of either class, mixed.

        Where there are fewer of a class than asked for, both classes have as many as there are,
        divided between training and testing in the proportion that was asked for.

        Raises:
            UserError: if a class has too few texts.
        """
        generator = np.random.default_rng(seed)
        if self.is_test is None:
            own = self._half(np.arange(len(self)), generator)
            wanted = (n_train + n_test) // 2
            there = min(len(one) for one in own)
            n_fit = n_train // 2
            if there < wanted:
                n_fit = round(there * n_train / (n_train + n_test))
            parts = [[one[:n_fit] for one in own], [one[n_fit:][: n_test // 2] for one in own]]
        else:
            sides = (~self.is_test, self.is_test)
            halves = [self._half(np.flatnonzero(side), generator) for side in sides]
            sizes = (n_train // 2, n_test // 2)
            parts = [[c[:n] for c in half] for half, n in zip(halves, sizes, strict=True)]
        found = []
        for kind, both in zip(_SPLITS, parts, strict=True):
            n = min(map(len, both))
            fewest = self.classes[int(len(both[1]) == n)]
            require(
                n >= _FEWEST,
                f"{self.name} has {n} text{'' if n == 1 else 's'} labelled {fewest!r} to "
                f"{kind} on, and a probe needs {_FEWEST} of each label at least; give more "
                "texts, or other numbers n_train and n_test",
            )
            rows = np.concatenate([one[:n] for one in both])
            found.append(self.of(generator.permutation(rows)))
        return found[0], found[1]

    def _half(
        self, rows: NDArray[np.intp], generator: np.random.Generator
    ) -> list[NDArray[np.intp]]:
        """Return rows of each class, mixed."""
        return [generator.permutation(rows[self.labels[rows] == one]) for one in (False, True)]


def task_names(asked: Sequence[str]) -> list[str]:
    """Return the tasks that are asked for, with `sae-probes:all` as all of its names.

    Raises:
        UserError: if a name is none, or is there twice.
    """
    found: list[str] = []
    for name in asked:
        if name == f"{SAE_PROBES_PREFIX}all":
            found += (f"{SAE_PROBES_PREFIX}{one}" for one in sae_probes_names())
        else:
            found.append(name)
    twice = [name for name, n in Counter(found).items() if n > 1]
    require(not twice, f"tasks={twice[:1]} is there twice; give each task once")
    return found


@cache
def sae_probes_names() -> tuple[str, ...]:
    """Return the names of the wheel's data sets whose labels are two, by their numbers."""
    there = [path.name.removesuffix(".csv.zst") for path in _folder().glob("*.csv.zst")]
    binary = [name for name in there if len({*_of_wheel(name)[1]}) == 2]
    return tuple(sorted(binary, key=lambda name: int(name.partition("_")[0])))


def labelled_texts(name: str, text_column: str, label_column: str) -> LabelledTexts:
    """Return the texts of a probing task and the label of each.

    Args:
        name: `noun-or-verb`, `sae-probes:NAME`, a file or a data set of the Hub.
        text_column: column of the texts, of a file or a data set.
        label_column: that of the labels.

    Raises:
        UserError: in one sentence, for whatever is no task for a probe.
    """
    if name == NOUN_OR_VERB:
        place = str(Path(__file__).with_name("noun_or_verb.csv"))
        return _made(name, [*_rows(place, "text", name)], ("text", "label"))
    if name.startswith(SAE_PROBES_PREFIX):
        return _from_wheel(name)
    return _made(name, [*_rows(name, text_column, name)], (text_column, label_column))


def other_distribution(name: str) -> LabelledTexts | None:
    """Return texts of a task from elsewhere, where the wheel has some: eight tasks do."""
    if not name.startswith(SAE_PROBES_PREFIX):
        return None
    own = name.removeprefix(SAE_PROBES_PREFIX)
    place = _folder().parent / "OOD data" / f"{own}_OOD.csv.zst"
    if not place.exists():
        return None
    texts, labels = _columns(place)
    rows = ({"text": t, "label": v} for t, v in zip(texts, labels, strict=True))
    return _made(f"{name} OOD", [("", row) for row in rows], ("text", "label"))


def _from_wheel(name: str) -> LabelledTexts:
    own = name.removeprefix(SAE_PROBES_PREFIX)
    there = [path.name.removesuffix(".csv.zst") for path in _folder().glob("*.csv.zst")]
    require(
        own in there,
        f"tasks={name} is not one of the {len(there)} data sets of "
        f"sae-probes{nearest(own, there)}; give one such as "
        f"{SAE_PROBES_PREFIX}5_hist_fig_ismale, or {SAE_PROBES_PREFIX}all",
    )
    texts, labels = _of_wheel(own)
    rows = ({"text": t, "label": v} for t, v in zip(texts, labels, strict=True))
    return _made(name, [("", row) for row in rows], ("text", "label"))


def _folder() -> Path:
    return package_folder(SAE_PROBES) / "sae_probes" / "data" / "cleaned_data"


def _of_wheel(name: str) -> tuple[list[str], list[str]]:
    return _columns(_folder() / f"{name}.csv.zst")


def _columns(place: Path) -> tuple[list[str], list[str]]:
    """Return prompts and targets of a data set of the wheel, as they are written."""
    import pyarrow
    import zstandard
    from pyarrow import csv

    with place.open("rb") as file:
        content = zstandard.ZstdDecompressor().stream_reader(file).read()
    names = ("prompt", "target")
    table = csv.read_csv(
        io.BytesIO(content),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        read_options=csv.ReadOptions(block_size=len(content) + 1),
        convert_options=csv.ConvertOptions(
            include_columns=names, column_types=dict.fromkeys(names, pyarrow.string())
        ),
    )
    prompts, targets = (table[name].to_pylist() for name in names)
    return prompts, targets


def _rows(name: str, column: str, task: str) -> Iterator[tuple[str, Values]]:
    """Yield where each row of a table is, and its values."""
    check_names(name)
    path = Path(name).expanduser()
    if path.is_file():
        yield from _of_file(str(path), column, task)
        return
    require(
        not name.startswith((".", "/", "~")) and kind_of(name) is None,
        f"tasks={name} is not a file; give one that exists, {NOUN_OR_VERB}, "
        f"{SAE_PROBES_PREFIX}NAME or a data set of the Hub",
    )
    from datasets import load_dataset

    try:
        table = load_dataset(name, split="train", streaming=True)
        for n, values in enumerate(islice(table, _MOST_ROWS), start=1):
            yield f"{name}, row {n}", values
    except Exception as error:
        # What is wrong with a name, a network or a file has a dozen types.
        raise UserError(
            f"tasks={name} is not {NOUN_OR_VERB}, {SAE_PROBES_PREFIX}NAME or a file, and "
            f"could not be downloaded from the Hub: {what_it_said(error)}"
        ) from error


def _of_file(file: str, column: str, task: str) -> Iterator[tuple[str, Values]]:
    kind = kind_of(file)
    require(
        kind in ("csv", "json", "parquet"),
        f"tasks={task} has an unknown ending; give a .csv, .jsonl or .parquet file",
    )
    if kind == "parquet":
        import pyarrow.parquet

        batches = pyarrow.parquet.ParquetFile(file).iter_batches()
        values = (row for batch in batches for row in batch.to_pylist())
        for n, row in enumerate(islice(values, _MOST_ROWS), start=1):
            yield f"{file}, row {n}", row
        return
    try:
        for row in islice(rows_of(file, column), _MOST_ROWS):
            if isinstance(row.values, Unreadable):
                raise UserError(f"{row.where} {row.values.reason}")
            yield row.where, row.values
    except UserError as error:
        if "data.column=" not in str(error):
            raise
        said = str(error).replace("data.column=", "text_column=", 1)
        raise UserError(said) from error
    except Exception as error:
        # A broken file raises what its reader likes.
        raise UserError(
            f"tasks={task} cannot be read as {kind}: {what_it_said(error)}"
        ) from error


def _made(
    name: str, rows: Iterable[tuple[str, Values]], columns: tuple[str, str]
) -> LabelledTexts:
    """Check rows and put them together; what comes twice is taken once."""
    found: dict[tuple[str, Span | None], tuple[str, str | None]] = {}
    for where, row in rows:
        text, label = _text(where, row, columns[0]), _label(where, row, columns[1])
        span = _span(where, row, text)
        found.setdefault((text, span), (label, _split(where, row)))
    require(bool(found), f"{name} holds no texts")
    labels = [label for label, _ in found.values()]
    classes = sorted({*labels})
    require(
        len(classes) > 1,
        f"{name}: all {len(labels):,} texts are labelled {classes[0]!r}, and a probe tells two "
        "labels apart; give texts of both",
    )
    require(
        len(classes) == 2,
        f"{name} has {len(classes):,} different labels, such as {', '.join(classes[:3])}, "
        "but a probe tells two labels apart; give a column with two labels by "
        "label_column=NAME",
    )
    spans = [span for _, span in found if span is not None]
    splits = [split for _, split in found.values()]
    for key, values in (("start and end", spans), ("split", [s for s in splits if s])):
        require(
            len(values) in (0, len(found)),
            f"{name}: {len(found) - len(values):,} of {len(found):,} texts have no {key}; give "
            "it for all texts or none",
        )
    return LabelledTexts(
        name,
        tuple(text for text, _ in found),
        np.array([label == classes[1] for label in labels]),
        (classes[0], classes[1]),
        tuple(spans) or None,
        np.array([split == "test" for split in splits]) if splits[0] else None,
    )


def _text(where: str, row: Values, column: str) -> str:
    require(
        column in row,
        f"text_column={column} is not in {where}; it has {', '.join(map(str, row))}",
    )
    text = row[column]
    require(
        isinstance(text, str) and bool(text.strip()) and is_whole(str(text)),
        f"{where}: {column}={text!r:.40} is not a text; give one that is not empty",
    )
    return str(text)


def _label(where: str, row: Values, column: str) -> str:
    require(
        column in row,
        f"label_column={column} is not in {where}; it has {', '.join(map(str, row))}",
    )
    label = row[column]
    require(
        isinstance(label, str | int) and str(label).strip() != "",
        f"{where}: {column}={label!r:.40} is not a label; give a word or a whole number",
    )
    return str(label)


def _span(where: str, row: Values, text: str) -> Span | None:
    given = [row.get(key) for key in ("start", "end")]
    if all(one in (None, "") for one in given):
        return None
    try:
        start, end = (int(str(one)) for one in given)
    except ValueError:
        start = end = -1
    require(
        0 <= start < end <= len(text),
        f"{where}: start={given[0]}, end={given[1]} is no part of a text of {len(text)} "
        "characters; give the number of its first character, counted from 0, and the "
        "number after its last character",
    )
    return start, end


def _split(where: str, row: Values) -> str | None:
    split = row.get("split")
    require(
        split in (None, "", *_SPLITS),
        f"{where}: split={split!r:.40} is neither train nor test; give one of them",
    )
    return str(split) if split else None
