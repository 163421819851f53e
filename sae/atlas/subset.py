"""The tables of an atlas for a dictionary that has only some of its features.

Features are numbered anew, `original_feature` stands beside `feature`, and what named a feature
that is gone (a neighbour, say) is left out.
"""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sae.atlas.atlas import Atlas
from sae.atlas.labels import Labels, read_labels, write_labels
from sae.atlas.lists import columns_of, flat_and_ends, list_array, list_lengths
from sae.atlas.schema import CONTEXTS, FEATURES
from sae.base import write_text

if TYPE_CHECKING:
    import pyarrow

MAP_FILE = "feature_map.csv"


def write_subset(atlas: Atlas, kept: NDArray[np.int64], folder: Path) -> None:
    """Write features, contexts, labels and `feature_map.csv` of the features `kept`.

    Args:
        kept: their numbers in the atlas, rising.

    Raises:
        UserError: if a table of the atlas is missing or damaged, or a label's line is broken.
    """
    labels = read_labels(atlas.folder)
    features = atlas.feature_table()
    new = np.full(len(features), -1, dtype=np.int64)
    new[kept] = np.arange(len(kept))
    columns = _numbered(features, new)
    for column in FEATURES.columns.values():
        if column.names_features:
            columns |= _without_names(columns, column.name, new)
    FEATURES.write(folder, columns)
    CONTEXTS.write(folder, _numbered(atlas.context_table(), new))
    chosen = (
        [column[i] for i in kept]
        for column in (labels.automatic, labels.label, labels.explanation)
    )
    write_labels(folder, Labels(*chosen))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("feature", "original_feature"))
    writer.writerows(enumerate(kept.tolist()))
    write_text(folder / MAP_FILE, text.getvalue())


def _numbered(table: "pyarrow.Table", new: NDArray[np.int64]) -> dict[str, "pyarrow.Array"]:
    """Return the columns of the features that stay, under their new numbers."""
    import pyarrow

    table = table.filter(pyarrow.array(new[table["feature"].to_numpy()] >= 0))
    columns = columns_of(table)
    old = table["feature"].to_numpy().astype(np.int32)
    return columns | {"feature": new[old].astype(np.int32), "original_feature": old}


def _without_names(
    columns: Mapping[str, "pyarrow.Array"], name: str, new: NDArray[np.int64]
) -> dict[str, "pyarrow.Array"]:
    """Return lists of other features, under their new numbers and without those that are gone.

    What stands beside them is returned with them.
    """
    import pyarrow

    lengths = list_lengths(columns, name)
    numbers = new[flat_and_ends(columns, name)[0].to_numpy()]
    there = numbers >= 0
    owners = np.repeat(np.arange(len(lengths)), lengths)[there]
    left = np.bincount(owners, minlength=len(lengths))
    found = {name: list_array(numbers[there].astype(np.int32), left)}
    for beside in FEATURES.beside(name):
        values = flat_and_ends(columns, beside)[0].filter(pyarrow.array(there))
        found[beside] = list_array(values, left)
    return found
