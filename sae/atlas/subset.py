"""Some features of an atlas: the clearest to show first, or those that a dictionary keeps.

What is kept is numbered anew, `original_feature` stands beside `feature`, and what named a
feature that is gone (a neighbour, say) is left out.
"""

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class ExampleContext:
    """A piece of text around the token at which a feature fires."""

    tokens: list[str]
    peak: int
    """Place of that token among the tokens."""
    activations: list[float]


@dataclass(frozen=True, slots=True)
class Example:
    """A feature at a glance: its name, what it promotes, where it fires most strongly."""

    feature: int
    label: str
    density: float
    max_activation: float
    promoted: list[str]
    """Tokens that its direction pushes up, the strongest first; none if not known."""
    contexts: list[ExampleContext]
    """Contexts in which the feature fires most strongly, the strongest first."""


def clearest_features(
    atlas: Atlas,
    n_features: int = 12,
    n_contexts: int = 2,
    kept: NDArray[np.int64] | None = None,
) -> list[Example]:
    """Choose the clearest features, with the first of their contexts.

    A feature is the clearer, the more of its contexts its promoted tokens speak of; of equally
    clear ones, the one that fires more strongly comes first. Where only the features `kept`
    (rising, all that fire among them) are left, examples have their new numbers.
    """
    import pyarrow
    from pyarrow import compute

    table = atlas.feature_table()
    order = [("logit_agreement", "descending"), ("max_activation", "descending")]
    known = [key for key in order if key[0] in table.column_names]
    firing = table.filter(compute.field("n_active") > 0)
    clearest = firing.sort_by(known).slice(0, n_features).to_pylist()
    contexts: dict[int, list[ExampleContext]] = {record["feature"]: [] for record in clearest}
    few = compute.field("feature").isin([*contexts])
    few = few & (compute.field("rank") < n_contexts) & (compute.field("group") == "top")
    # A few records of a table that is far larger than all else here.
    for batch in atlas.context_batches():
        for one in pyarrow.Table.from_batches([batch]).filter(few).to_pylist():
            peak = one["position"] - one["start"]
            context = ExampleContext(one["tokens"], peak, one["activations"])
            contexts[one["feature"]].append(context)
    labels = read_labels(atlas.folder).label
    return [
        Example(
            feature=int(
                record["feature"] if kept is None else kept.searchsorted(record["feature"])
            ),
            label=labels[record["feature"]],
            density=record["density"],
            max_activation=record["max_activation"],
            promoted=record.get("top_logit_tokens", [])[:5],
            contexts=contexts[record["feature"]],
        )
        for record in clearest
    ]
