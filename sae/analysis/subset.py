"""The tables of an atlas for a dictionary that has only some of its features.

Features are numbered anew, `original_feature` stands beside `feature`, and what named a feature
that is gone (a neighbour, say) is left out.
"""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae.analysis.atlas import CONTEXTS_FILE, FEATURES_FILE, Atlas
from sae.analysis.labels import Labels, read_labels, write_labels
from sae.analysis.tables import lists
from sae.base.files import write_text

MAP_FILE = "feature_map.csv"
_NAMES_OF_OTHERS = {
    "neighbours": ("neighbour_cosines",),
    "correlated": ("correlations",),
    "coactive": ("coactive_counts", "coactive_jaccard"),
}
"""Columns that hold lists of features, and those that stand beside each."""


def write_subset(atlas: Atlas, kept: NDArray[np.int64], folder: Path) -> None:
    """Write features, contexts, labels and `feature_map.csv` of the features `kept`.

    Args:
        kept: their numbers in the atlas, rising.

    Raises:
        UserError: if a table of the atlas is missing or damaged, or a label's line is broken.
    """
    import pyarrow.parquet

    labels = read_labels(atlas.folder)
    features = atlas.feature_table()
    new = np.full(len(features), -1, dtype=np.int64)
    new[kept] = np.arange(len(kept))
    tables = {
        FEATURES_FILE: _without_names(_numbered(features, new), new),
        CONTEXTS_FILE: _numbered(atlas.context_table(), new),
    }
    for name, table in tables.items():
        pyarrow.parquet.write_table(table, folder / name, compression="zstd")
    chosen = ([column[i] for i in kept] for column in (labels.automatic, *labels.columns[:2]))
    write_labels(folder, Labels(*chosen))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("feature", "original_feature"))
    writer.writerows(enumerate(kept.tolist()))
    write_text(folder / MAP_FILE, text.getvalue())


def _numbered(table: Any, new: NDArray[np.int64]) -> Any:
    """Rows of the features that stay, under their new numbers."""
    import pyarrow

    old = table["feature"].to_numpy()
    table = table.filter(pyarrow.array(new[old] >= 0))
    old = table["feature"].to_numpy()
    place = table.schema.get_field_index("feature")
    numbers = pyarrow.array(new[old].astype(np.int32))
    table = table.set_column(place, "feature", numbers)
    return table.add_column(place + 1, "original_feature", pyarrow.array(old.astype(np.int32)))


def _without_names(table: Any, new: NDArray[np.int64]) -> Any:
    """The lists of other features, under their new numbers and without those that are gone."""
    import pyarrow
    import pyarrow.compute

    for names, beside in _NAMES_OF_OTHERS.items():
        columns = {name: table[name].combine_chunks() for name in (names, *beside)}
        flat = new[columns[names].flatten().to_numpy()]
        lengths = pyarrow.compute.list_value_length(columns[names]).to_numpy()
        there = flat >= 0
        owners = np.repeat(np.arange(len(table)), lengths)[there]
        left = np.bincount(owners, minlength=len(table))
        for name, column in columns.items():
            values = (
                pyarrow.array(flat[there].astype(np.int32))
                if name == names
                else column.flatten().filter(pyarrow.array(there))
            )
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, lists(values, left))
    return table
