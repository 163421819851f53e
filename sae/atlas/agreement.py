"""Whether the tokens that a feature promotes stand where it fires: the mark of a clear one."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def word_numbers(texts: Sequence[str]) -> Int[np.ndarray, " text"]:
    """Return numbers that are equal where texts are, letter case and outer spaces aside."""
    words = np.array([text.strip().lower() for text in texts], dtype=object)
    found: Int[np.ndarray, " text"] = np.unique(words, return_inverse=True)[1]
    return found


def logit_agreement(
    promoted: Int[np.ndarray, "d_sae k"],
    features: Int[np.ndarray, " context"],
    near: Int[np.ndarray, "context 2"],
) -> Float[np.ndarray, " d_sae"]:
    """Return, for each feature, the share of its contexts that its promoted tokens speak of.

    A context counts when the token at its peak, or the one after, is among the tokens that the
    feature promotes. A feature without contexts has 0.

    Args:
        promoted: number of the word of each promoted token; −1 for none.
        features: which feature each context is of.
        near: words at the peak and after it, by the same numbers; −2 for none.
    """
    agrees = (near[:, :, None] == promoted[features][:, None, :]).any(axis=(1, 2))
    total, agreeing = (
        np.bincount(owners, minlength=len(promoted)) for owners in (features, features[agrees])
    )
    share: Float[np.ndarray, " d_sae"] = agreeing / np.maximum(1, total)
    return share
