"""What it costs to make a dictionary smaller, measured on held-out rows before and after."""

from sae.base import UserError, require, say
from sae.cache.layout import open_cache
from sae.dictionary import Dictionary
from sae.evaluation.held_out import behaviour_scores, measured_rows, reconstruction
from sae.figures import ShrinkingCost
from sae.models import recorded_model, resolve_device
from sae.rows.origin import check_same_origin
from sae.rows.shuffle import RowSelection

_SHRUNK_ROWS = 8_192
"""Held-out activations that a shrunk dictionary is measured on at most, evenly spread."""
_SHRUNK_TOKENS = 2_048
"""Held-out tokens that go through the whole model before and after."""
_SHRUNK_SEQUENCES = 8
"""Sequences in a forward pass."""


def held_out_rows(name: str, dictionary: Dictionary, location: str) -> RowSelection:
    """Select the held-out activations of the cache at `location` that a dictionary reads.

    Raises:
        UserError: if the cache is missing, of another model or hook, or holds out nothing.
    """
    cache = open_cache(location)
    check_same_origin(name, dictionary, cache)
    rows = measured_rows(dictionary, cache, held_out=True)
    require(
        rows.n_rows > 0,
        f"{location} has no held-out document, so the loss of a smaller export cannot be "
        "measured; give another cache=...",
    )
    return rows


def shrinking_cost(
    before: Dictionary, after: Dictionary, rows: RowSelection, *, causal: bool
) -> ShrinkingCost:
    """Measure a dictionary before and after it was made smaller, on the same activations.

    If the model is `causal` and can be had, its cross-entropy is measured too.
    """
    device = resolve_device("auto")
    both = {"before": before.to(device), "after": after.to(device)}
    statistics = {name: reconstruction(d, rows, limit=_SHRUNK_ROWS) for name, d in both.items()}
    figures = {name: found.metrics() for name, found in statistics.items()}
    n_tokens = 0
    try:
        model = recorded_model(rows.cache.model, "auto") if causal else None
    except UserError as error:
        say(f"export: the effect on the model's CE is not measured, because {error}")
        model = None
    if model is not None and model.record.causal:
        n_tokens, scores = behaviour_scores(
            model, rows.cache, both, _SHRUNK_TOKENS, _SHRUNK_SEQUENCES
        )
        for name, found in scores.items():
            figures[name] |= found.values
    return ShrinkingCost(
        n_dropped=before.d_sae - after.d_sae,
        d_sae=before.d_sae,
        n_rows=statistics["after"].n_rows,
        n_behaviour_tokens=n_tokens,
        **figures,
    )
