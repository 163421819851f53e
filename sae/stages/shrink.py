"""What an export makes smaller, and what that costs on rows that were never trained on."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sae.analysis.reconstruction import reconstruction
from sae.base.errors import require
from sae.cache.layout import open_cache
from sae.cache.reader import RowSelection, select_rows
from sae.dictionary import Dictionary
from sae.exchange.shrink import FULL, Shrunk, as_loaded, only_latents
from sae.stages.common import check_same_origin, norm_limit

_ROWS = 8_192
"""Held-out rows that are measured, at most; evenly spread, and the same before and after."""


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
    rows = select_rows(
        cache,
        dictionary.hook_name,
        held_out=True,
        max_norm_multiple=norm_limit(dictionary),
    )
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
) -> Smaller:
    """The dictionary in a smaller type, or without features that never fired, and the cost.

    Args:
        n_active: rows in which each feature fired, (d_sae,); with None all features stay.

    Raises:
        UserError: if no feature ever fired, or a weight is beyond the type.
    """
    kept = np.arange(dictionary.d_sae) if n_active is None else n_active.nonzero()[0]
    require(
        len(kept) > 0,
        "drop_dead=true would leave nothing, since no feature fired; export without it",
    )
    small = only_latents(dictionary, torch.from_numpy(kept))
    if dtype != FULL:
        small = as_loaded(small, dtype)
    before, after = (reconstruction(d, rows, limit=_ROWS) for d in (dictionary, small))
    cost = Shrunk(
        dictionary.d_sae - len(kept),
        dictionary.d_sae,
        after.n_rows,
        before.metrics(),
        after.metrics(),
    )
    return Smaller(small, kept, cost)
