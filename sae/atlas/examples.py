"""Features to show first: the clearest ones, with texts where they fire."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae.atlas.atlas import Atlas
from sae.atlas.labels import read_labels


@dataclass(frozen=True, slots=True)
class ExampleContext:
    """A piece of text around the token at which a feature fires."""

    tokens: list[str]
    peak: int
    """Place of that token among the tokens."""
    activations: list[float]
    """The feature's activation at each token."""


@dataclass(frozen=True, slots=True)
class Example:
    """A feature at a glance: its name, what it promotes, where it fires most strongly."""

    feature: int
    label: str
    density: float
    """Share of the text's tokens on which it is active."""
    max_activation: float
    promoted: list[str] = field(default_factory=list)
    """Tokens that its direction pushes up, the strongest first; none if not known."""
    contexts: list[ExampleContext] = field(default_factory=list)
    """Where it fires most, the strongest first."""


def clearest_features(
    atlas: Atlas,
    n_features: int = 12,
    n_contexts: int = 2,
    kept: NDArray[np.int64] | None = None,
) -> list[Example]:
    """Choose the clearest features, with the first of their contexts.

    Clearest: the promoted tokens speak of most of its contexts, and it fires strongly.

    Args:
        kept: numbers, rising, of the features that are left; the examples count these alone.
            Those that fire are among them.
    """
    import pyarrow
    from pyarrow import compute

    table = atlas.feature_table()
    order = [("logit_agreement", "descending"), ("max_activation", "descending")]
    known = [key for key in order if key[0] in table.column_names]
    best = table.filter(compute.field("n_active") > 0).sort_by(known).slice(0, n_features)
    few = compute.field("feature").isin(best["feature"].to_pylist())
    few = few & (compute.field("rank") < n_contexts) & (compute.field("group") == "top")
    labels = read_labels(atlas.folder).label
    contexts: dict[int, list[ExampleContext]] = {}
    # A few rows of a table that is far larger than all else here.
    for batch in atlas.context_batches():
        for row in pyarrow.Table.from_batches([batch]).filter(few).to_pylist():
            contexts.setdefault(row["feature"], []).append(_context(row))
    return [
        Example(
            feature=row["feature"] if kept is None else int(kept.searchsorted(row["feature"])),
            label=labels[row["feature"]],
            density=row["density"],
            max_activation=row["max_activation"],
            promoted=row.get("top_logit_tokens", [])[:5],
            contexts=contexts.get(row["feature"], []),
        )
        for row in best.to_pylist()
    ]


def _context(row: dict[str, Any]) -> ExampleContext:
    return ExampleContext(row["tokens"], row["position"] - row["start"], row["activations"])
