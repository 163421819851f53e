"""Rows of a cache for measurements that hold them in memory."""

from jaxtyping import Float
from torch import Tensor

from sae.base import require
from sae.cache.layout import ActivationCache
from sae.dictionary import Dictionary
from sae.evaluation.held_out import measured_rows
from sae.rows.shuffle import joined, rows_in_order

MOST_ROWS = 16_384
"""Rows that are taken at most, evenly spread over the text."""


def sample_rows(
    dictionary: Dictionary,
    cache: ActivationCache,
    *,
    held_out: bool = True,
    limit: int = MOST_ROWS,
) -> tuple[Float[Tensor, "row d_in"], Float[Tensor, "row d_out"]]:
    """Return rows at the hooks that a dictionary reads and reconstructs, in their order.

    Args:
        held_out: whether they are of text that nobody trained on, or of the other text.

    Raises:
        UserError: if the cache has none.
    """
    rows = measured_rows(dictionary, cache, held_out=held_out)
    require(
        rows.n_rows > 0,
        f"{cache.location} has no held-out activation; harvest with "
        "data.held_out_fraction=0.1, or give another cache=...",
    )
    sides = joined(rows_in_order(rows, limit))
    return sides[0].float(), sides[-1].float()
