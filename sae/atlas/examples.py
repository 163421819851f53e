"""Features to show first: the clearest ones, with texts where they fire."""

from dataclasses import dataclass

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
    """Where it fires most, the strongest first."""


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
