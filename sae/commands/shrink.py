"""What an export makes smaller, and what that costs on text that was never trained on."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sae.base.errors import UserError, require
from sae.base.progress import say
from sae.cache.layout import ActivationCache, open_cache
from sae.commands.common import check_same_origin
from sae.commands.eval import behaviour_scores
from sae.dictionary import Dictionary
from sae.dictionary.storage import FULL, as_loaded
from sae.evaluation.reconstruction import measured_rows, reconstruction
from sae.exchange.shrink import Shrunk
from sae.models.load import LanguageModel, recorded_model, resolve_device
from sae.rows.shuffle import RowSelection

_ROWS = 8_192
"""Held-out rows that are measured, at most; evenly spread, and the same before and after."""
_TOKENS = 2_048
"""Held-out tokens that go through the whole model, before and after."""
_SEQUENCES = 8
"""Of them a forward pass."""
_DEVICE = "auto"


@dataclass(frozen=True, slots=True)
class Smaller:
    """A dictionary as it is exported."""

    dictionary: Dictionary
    kept: NDArray[np.int64]
    """The features that are left, by their numbers before."""
    cost: Shrunk | None
    """None where nothing was made smaller."""

    @classmethod
    def not_at_all(cls, dictionary: Dictionary) -> "Smaller":
        """The dictionary as it is."""
        return cls(dictionary, np.arange(dictionary.d_sae), None)


def held_out_rows(name: str, dictionary: Dictionary, location: str) -> RowSelection:
    """The rows of the cache at `location` on which evaluation measures the dictionary.

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


def shrink(
    dictionary: Dictionary,
    rows: RowSelection,
    dtype: str,
    n_active: NDArray[np.int64] | None,
    *,
    causal: bool,
) -> Smaller:
    """The dictionary in a smaller type, or without features that never fired, and the cost.

    Args:
        n_active: rows in which each feature fired, (d_sae,); with None all features stay.
        causal: whether the model has a CE, which is measured then if the model can be had.

    Raises:
        UserError: if no feature ever fired, or a weight is beyond the type.
    """
    kept = np.arange(dictionary.d_sae) if n_active is None else n_active.nonzero()[0]
    require(
        len(kept) > 0,
        "drop_dead=true would leave nothing, since no feature fired; export without it",
    )
    small = dictionary.of_latents(torch.from_numpy(kept))
    if dtype != FULL:
        small = as_loaded(small, dtype)
    if small is dictionary:
        return Smaller.not_at_all(dictionary)
    n_dropped = dictionary.d_sae - len(kept)
    return Smaller(small, kept, _cost(dictionary, small, n_dropped, rows, causal))


def _cost(
    dictionary: Dictionary, small: Dictionary, n_dropped: int, rows: RowSelection, causal: bool
) -> Shrunk:
    device = resolve_device(_DEVICE)
    both = {"before": dictionary.to(device), "after": small.to(device)}
    statistics = {name: reconstruction(d, rows, limit=_ROWS) for name, d in both.items()}
    figures = {name: s.metrics() for name, s in statistics.items()}
    n_tokens = 0
    model = _model(rows.cache) if causal else None
    if model is not None:
        hooks = dictionary.hook_names
        n_tokens, scores = behaviour_scores(model, rows.cache, hooks, both, _TOKENS, _SEQUENCES)
        for name, found in scores.items():
            figures[name] |= found
    n_rows = statistics["after"].n_rows
    return Shrunk(n_dropped, dictionary.d_sae, n_rows, n_tokens, **figures)


def _model(cache: ActivationCache) -> LanguageModel | None:
    try:
        return recorded_model(cache.model, _DEVICE)
    except UserError as error:
        say(f"export: what this does to the model's CE is not measured: {error}")
        return None
