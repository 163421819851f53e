"""Features to show first: the clearest ones, with texts where they fire."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae.analysis.atlas import Atlas
from sae.analysis.labels import read_labels


def feature_cards(
    atlas: Atlas,
    n_features: int = 12,
    n_contexts: int = 2,
    kept: NDArray[np.int64] | None = None,
) -> list[dict[str, Any]]:
    """The clearest features, with the first of their contexts.

    Clearest: the promoted tokens speak of most of its contexts, and it fires strongly.

    Args:
        kept: numbers, rising, of the features that are left; the cards count these alone. Those
            that fire are among them.
    """
    import pyarrow
    from pyarrow import compute

    table = atlas.feature_table()
    order = [("logit_agreement", "descending"), ("max_activation", "descending")]
    known = [key for key in order if key[0] in table.column_names]
    best = table.filter(compute.field("n_active") > 0).sort_by(known).slice(0, n_features)
    field = compute.field
    few = field("feature").isin(best["feature"].to_pylist()) & (field("rank") < n_contexts)
    few = few & (field("group") == "top")
    labels = read_labels(atlas.folder).label
    contexts: dict[int, list[dict[str, Any]]] = {}
    # A few rows of a table that is far larger than all else here.
    for batch in atlas.context_batches():
        for row in pyarrow.Table.from_batches([batch]).filter(few).to_pylist():
            contexts.setdefault(row["feature"], []).append(_card_context(row))
    return [
        {
            "index": row["feature"] if kept is None else int(kept.searchsorted(row["feature"])),
            "label": labels[row["feature"]],
            "density": row["density"],
            "max": row["max_activation"],
            "top_tokens": row.get("top_logit_tokens", [])[:5],
            "contexts": contexts.get(row["feature"], []),
        }
        for row in best.to_pylist()
    ]


def _card_context(row: dict[str, Any]) -> dict[str, Any]:
    """A context without what does not fire: `acts` is place and activation in turn."""
    firing = [(place, act) for place, act in enumerate(row["activations"]) if act > 0]
    return {
        "tokens": row["tokens"],
        "peak": row["position"] - row["start"],
        "acts": [value for pair in firing for value in pair],
    }
