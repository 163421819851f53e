"""The tables of an atlas for a dictionary that has only some of its features.

Features are numbered anew, `original_feature` stands beside `feature`, and what named a feature
that is gone (a neighbour, say) is left out.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sae.atlas.atlas import Atlas
from sae.atlas.labels import Labels, read_labels, write_labels
from sae.atlas.schema import CONTEXTS, FEATURES
from sae.atlas.table import columns_of, flat_and_ends, kept_entries, list_lengths
from sae.base import write_text

if TYPE_CHECKING:
    import pyarrow

MAP_FILE = "feature_map.csv"


def write_subset(atlas: Atlas, kept: NDArray[np.int64], folder: Path) -> None:
    """Write features, contexts, labels and `feature_map.csv` of the features `kept`, rising.

    Raises:
        UserError: if a table of the atlas is missing or damaged, or a label's line is broken.
    """
    import pyarrow

    labels = read_labels(atlas.folder)
    features = atlas.feature_table()
    new = np.full(len(features), -1, dtype=np.int32)
    new[kept] = np.arange(len(kept))
    columns = _numbered(features, new)
    for column in FEATURES.columns.values():
        if column.names_features:
            names = [column.name, *FEATURES.beside(column.name)]
            entries = {name: flat_and_ends(columns, name)[0] for name in names}
            numbers = new[entries[column.name].to_numpy()]
            entries[column.name] = pyarrow.array(numbers)
            lengths = list_lengths(columns, column.name)
            columns |= kept_entries(entries, lengths, numbers >= 0)
    FEATURES.write(folder, columns)
    CONTEXTS.write(folder, _numbered(atlas.context_table(), new))
    lists = labels.automatic, labels.label, labels.explanation
    write_labels(folder, Labels(*([texts[i] for i in kept] for texts in lists)))
    pairs = "".join(f"{feature},{original}\n" for feature, original in enumerate(kept.tolist()))
    write_text(folder / MAP_FILE, f"feature,original_feature\n{pairs}")


def _numbered(table: "pyarrow.Table", new: NDArray[np.int32]) -> dict[str, "pyarrow.Array"]:
    import pyarrow

    table = table.filter(pyarrow.array(new[table["feature"].to_numpy()] >= 0))
    old = table["feature"].to_numpy()
    return columns_of(table) | {"feature": new[old], "original_feature": old}
