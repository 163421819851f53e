"""Activations and logits in a dictionary's own scale, and in that of unit decoder directions.

SAEDashboard and Neuronpedia fold the norms of decoder rows into the encoder before they look
(SAELens's `fold_W_dec_norm`), so that activations are those of unit directions and logits are a
unit direction's.
"""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from sae.atlas import columns_of, flat_and_ends, list_array, list_lengths

if TYPE_CHECKING:
    import pyarrow

_NUMBERS = ("max_activation", "activation")
_ACTIVATIONS = (*_NUMBERS, "activations")
_LOGITS = ("top_logits", "bottom_logits")


def unit_norms(
    norms: Float32[np.ndarray, " d_sae"], architecture: str | None
) -> Float32[np.ndarray, " d_sae"]:
    """Return what activations are multiplied by so that decoder directions have norm one.

    That is one for norms that are not known (NaN) or hardly differ from one; and for top-k,
    whose latents would be others: SAELens folds nothing there.
    """
    plain = ~(norms > 0) | (np.abs(norms - 1) < 1e-5) | (architecture == "topk")
    return np.where(plain, np.float32(1), norms)


def rescaled(
    table: "pyarrow.Table", norms: Float32[np.ndarray, " d_sae"], *, fold: bool
) -> dict[str, "pyarrow.Array"]:
    """Return the columns of features or contexts, with norms folded in or taken out again.

    Args:
        norms: as `unit_norms` gives them.
        fold: whether activations are multiplied by norms and logits divided by them, or the
            other way round.
    """
    columns, own = columns_of(table), norms[table["feature"].to_numpy()]
    for name in columns.keys() & {*_ACTIVATIONS, *_LOGITS}:
        scale = np.multiply if fold == (name in _ACTIVATIONS) else np.divide
        if name in _NUMBERS:
            columns[name] = scale(table[name].to_numpy(), own)
        else:
            flat, lengths = flat_and_ends(table, name)[0], list_lengths(table, name)
            columns[name] = list_array(scale(flat.to_numpy(), np.repeat(own, lengths)), lengths)
    return columns
