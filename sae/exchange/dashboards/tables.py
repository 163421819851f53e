"""Dashboards of other tools as the tables of an atlas, contexts through files in between.

Rows are in Neuronpedia's words, which for features are SAEDashboard's. What those formats do
not hold is left empty: mean and spread of activations, positions, tokens by count, documents,
co-activation, and contexts in which a feature is silent.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sae.atlas import FEATURES, list_lengths
from sae.atlas.table import arrow_type
from sae.base import UserError, require
from sae.exchange.dashboards.columns import context_rows, feature_table, ordered
from sae.exchange.dashboards.files import (
    MOST_FEATURES,
    Row,
    check_lengths,
    column,
    feature_number,
)

if TYPE_CHECKING:
    import pyarrow

BY_HAND, AUTOMATIC, EXPLANATION = "label by hand", "automatic label", "explanation"
"""What an explanation's notes say it is, where it was written here."""
_CHUNK = 4096
_BUCKET = 1024
"""Features whose contexts are read at once, and later lie in a row group."""
_MOST_BARS = 200
"""Bars of a histogram. Every feature gets as many as the one with most; usually all have 50."""


class Scratch:
    """Contexts in any order, kept in a file of which those of some features can be read."""

    def __init__(self, folder: Path) -> None:
        self._path = str(folder / "contexts.arrow")
        self._writer: pyarrow.RecordBatchFileWriter | None = None
        self._batches: dict[int, list[int]] = {}
        """Where in the file the contexts of a bucket are."""
        self._written = 0

    def add(self, table: "pyarrow.Table") -> None:
        """Put rows where their features are."""
        import pyarrow

        if self._writer is None:
            self._writer = pyarrow.ipc.new_file(self._path, table.schema)
        buckets = table["feature"].to_numpy() // _BUCKET
        order = np.argsort(buckets, kind="stable")
        table = table.take(pyarrow.array(order)).combine_chunks()
        found, starts = np.unique(buckets[order], return_index=True)
        ends = [*starts[1:].tolist(), len(table)]
        for bucket, start, end in zip(found.tolist(), starts.tolist(), ends, strict=True):
            for batch in table.slice(start, end - start).to_batches():
                self._writer.write_batch(batch)
                self._batches.setdefault(bucket, []).append(self._written)
                self._written += 1

    def tables(self) -> Iterator["pyarrow.Table"]:
        """All that was added, some features at a time, in the order of these."""
        import pyarrow

        if self._writer is None:
            return
        self._writer.close()
        with pyarrow.memory_map(self._path) as file:
            reader = pyarrow.ipc.open_file(file)
            for bucket in sorted(self._batches):
                batches = [reader.get_batch(number) for number in self._batches[bucket]]
                yield pyarrow.Table.from_batches(batches).combine_chunks()


class Found:
    """What a folder of dashboards holds: rows of features and of contexts, file by file."""

    def __init__(self, scratch: Path) -> None:
        self.about: dict[str, object] = {}
        """Fields of the atlas's record: model, hook, text, sequences and their size."""
        self.record: object = {}
        """What is said of the atlas that it was written from, if it was written here."""
        self.skipped: list[object] = []
        """Features that were left out as dead."""
        self.texts: dict[int, list[tuple[str, str]]] = {}
        """What is said of features, and of which kind that is."""
        self._scratch = Scratch(scratch)
        self._features: list[pyarrow.Table] = []
        self._highest = np.full(MOST_FEATURES, -np.inf)
        """Highest activation in the contexts of each feature; −inf for none."""

    def add_features(self, rows: list[Row], key: str, path: Path) -> None:
        """Take features in; `key` is where a row has its number.

        Raises:
            UserError: if a row is not of the form.
        """
        import pyarrow

        if not rows:
            return
        numbers = [feature_number(row.get(key), path) for row in rows]
        columns = {"feature": pyarrow.array(numbers, pyarrow.int32())}
        for name, (word, kind) in _WORDS.items():
            columns[name] = column(rows, word, arrow_type(kind), path)
        table = pyarrow.table(columns)
        for one, other in _PAIRS:
            check_lengths(table, one, other, (_WORDS[one][0], _WORDS[other][0]), path)
        density, highest = (table[name].to_numpy() for name in ("density", "highest"))
        bars = list_lengths(table, "heights")
        for values, wrong, said in (
            (
                density,
                (density < 0) | (density > 1),
                "frac_nonzero={:g}; a share of tokens is from 0 to 1",
            ),
            (
                highest,
                abs(highest) > np.finfo(np.float32).max,
                "maxActApprox={:g}; no activation is that high",
            ),
            (
                bars,
                bars > _MOST_BARS,
                f"a histogram of {{:,}} bars; {_MOST_BARS} are the most that are read",
            ),
        ):
            if wrong.any():
                i = int(wrong.argmax())
                raise UserError(f"{path}: feature {numbers[i]} has {said.format(values[i])}")
        self._features.append(table)

    def add_contexts(self, rows: Iterable[Row], path: Path) -> None:
        """Take contexts in.

        Raises:
            UserError: if a row is not of the form.
        """
        source = iter(rows)
        while chunk := list(islice(source, _CHUNK)):
            table = context_rows(chunk, path)
            owners, highest = (table[name].to_numpy() for name in ("feature", "highest"))
            np.maximum.at(self._highest, owners, highest)
            self._scratch.add(table.drop_columns(["highest"]))

    @property
    def n_told_of(self) -> int:
        """Number of features that the files describe."""
        return sum(map(len, self._features))

    @property
    def n_features(self) -> int:
        """One more than the greatest number of a feature."""
        return max((int(t["feature"].to_numpy().max()) + 1 for t in self._features), default=0)

    def features(self, n: int, n_rows: int | None) -> "pyarrow.Table":
        """Return the table of `features.parquet`, a row for each of `n` features.

        Features that no file has are silent ones. Others that a list names and that are not
        among the `n` are left out of it.

        Raises:
            UserError: for a feature that is there twice, or has contexts and no row.
        """
        import pyarrow

        table = pyarrow.concat_tables(self._features).sort_by("feature")
        numbers = table["feature"].to_numpy()
        twice = np.flatnonzero(np.diff(numbers) == 0)
        if len(twice):
            raise UserError(
                f"feature {numbers[twice[0]]} occurs twice; put each source into a folder "
                "of its own"
            )
        require(
            int(numbers[-1]) < n,
            f"feature {numbers[-1]} is out of range: its dictionary has {n:,} features",
        )
        there = np.full(n, -1)
        there[numbers] = np.arange(len(numbers))
        known = np.full(n, -np.inf)
        known[: len(self._highest)] = self._highest[:n]
        stray = np.flatnonzero(np.isfinite(self._highest))
        stray = stray[(stray >= n) | (there[np.minimum(stray, n - 1)] < 0)]
        if len(stray):
            raise UserError(f"feature {stray[0]} has contexts but is not among the features")
        rows = table.take(pyarrow.array(there, mask=there < 0)).combine_chunks()
        return feature_table(rows, known, n_rows)

    def contexts(self) -> Iterator["pyarrow.Table"]:
        """Return the tables of `contexts.parquet`, some features at a time, to be read once."""
        for table in self._scratch.tables():
            yield ordered(table)


_WORDS = {
    "density": ("frac_nonzero", "double"),
    "highest": ("maxActApprox", "double"),
    "heights": ("freq_hist_data_bar_heights", "list<double>"),
    "bars": ("freq_hist_data_bar_values", "list<double>"),
    "top_logit_tokens": ("pos_str", "list<string>"),
    "top_logits": ("pos_values", "list<float>"),
    "bottom_logit_tokens": ("neg_str", "list<string>"),
    "bottom_logits": ("neg_values", "list<float>"),
    "correlated": ("correlated_features_indices", "list<int64>"),
    "correlations": ("correlated_features_pearson", "list<float>"),
    "neighbours": ("topkCosSimIndices", "list<int64>"),
    "neighbour_cosines": ("topkCosSimValues", "list<float>"),
    "map_x": ("umap_x", "double"),
    "map_y": ("umap_y", "double"),
}
"""Our columns, the words for them, and types that hold whatever stands there."""
_PAIRS = [("heights", "bars")] + [
    (column.beside, column.name)
    for column in FEATURES.columns.values()
    if column.name in _WORDS and column.beside
]
