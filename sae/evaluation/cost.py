"""What making a dictionary smaller costs, on text that it was never trained on."""

from sae.base import UserError, require, say
from sae.cache.layout import ActivationCache, open_cache
from sae.dictionary import Dictionary
from sae.evaluation.evaluate import behaviour_scores
from sae.evaluation.reconstruction import measured_rows, reconstruction
from sae.figures import ShrinkingCost
from sae.models import LanguageModel, recorded_model, resolve_device
from sae.rows.origin import check_same_origin
from sae.rows.shuffle import RowSelection

_ROWS = 8_192
"""Held-out activations that are measured, at most: evenly spread, the same before and after."""
_TOKENS = 2_048
"""Held-out tokens that go through the whole model, before and after."""
_SEQUENCES = 8
"""Sequences in a forward pass."""
_DEVICE = "auto"


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
        f"{location} holds no document out, so nothing made smaller can be measured; give "
        "another cache=...",
    )
    return rows


def shrinking_cost(
    before: Dictionary, after: Dictionary, rows: RowSelection, *, causal: bool
) -> ShrinkingCost:
    """Measure a dictionary before and after it was made smaller, on the same activations.

    Args:
        causal: whether the model predicts a next token, so that its cross-entropy is measured
            too, if the model can be had.
    """
    device = resolve_device(_DEVICE)
    both = {"before": before.to(device), "after": after.to(device)}
    statistics = {name: reconstruction(d, rows, limit=_ROWS) for name, d in both.items()}
    figures = {name: found.metrics() for name, found in statistics.items()}
    n_tokens = 0
    model = _model(rows.cache) if causal else None
    if model is not None:
        n_tokens, scores = behaviour_scores(
            model, rows.cache, before.hook_names, both, _TOKENS, _SEQUENCES
        )
        for name, found in scores.items():
            figures[name] |= found
    return ShrinkingCost(
        n_dropped=before.d_sae - after.d_sae,
        d_sae=before.d_sae,
        n_rows=statistics["after"].n_rows,
        n_behaviour_tokens=n_tokens,
        **figures,
    )


def _model(cache: ActivationCache) -> LanguageModel | None:
    try:
        return recorded_model(cache.model, _DEVICE)
    except UserError as error:
        say(f"export: what this does to the model's CE is not measured: {error}")
        return None
