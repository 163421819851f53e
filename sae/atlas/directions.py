"""What a dictionary's directions say of its features: norms, neighbours, map, clarity."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from sae.atlas.schema import N_LISTED
from sae.atlas.table import list_array
from sae.dictionary import Dictionary


@torch.no_grad()
def nearest_features(
    w_dec: Float[Tensor, "d_sae d_out"], k: int
) -> tuple[Int[Tensor, "d_sae k"], Float[Tensor, "d_sae k"]]:
    """Find the `k` nearest decoder directions of every feature, and their cosines."""
    unit = torch.nn.functional.normalize(w_dec, dim=1)
    k = min(k, len(unit) - 1)
    found = []
    for start in range(0, len(unit), 1024):
        block = unit[start : start + 1024] @ unit.t()
        own = torch.arange(len(block))
        block[own, own + start] = -2.0
        best = block.topk(k, dim=1)
        found.append((best.indices.cpu(), best.values.cpu()))
    indices, cosines = map(torch.cat, zip(*found, strict=True))
    return indices, cosines


def direction_columns(
    dictionary: Dictionary,
    neighbours: NDArray[np.int64],
    cosines: NDArray[np.float32],
    places: NDArray[np.float32],
) -> dict[str, object]:
    """Return the columns of `features.parquet` that need no text.

    `neighbours` and `cosines` are (d_sae, k), as `nearest_features` finds them; ten are listed.
    `places` are those on the map, (d_sae, 2).
    """
    near, beside = neighbours[:, :N_LISTED].astype(np.int32), cosines[:, :N_LISTED]
    w_dec = dictionary.W_dec.detach().float()
    # Norms differ in their last bit by how the weights lie in memory.
    w_enc = dictionary.W_enc.detach().float().contiguous()
    return {
        "decoder_norm": w_dec.norm(dim=1).cpu().numpy(),
        "encoder_norm": w_enc.norm(dim=0).cpu().numpy(),
        "neighbours": list_array(near.ravel(), near.shape[1]),
        "neighbour_cosines": list_array(beside.ravel(), near.shape[1]),
        "map_x": places[:, 0],
        "map_y": places[:, 1],
    }


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
    feature promotes; a feature without contexts has 0. `promoted` and `near` (at the peaks and
    after them) are `word_numbers`, or −1 and −2 for none.
    """
    agrees = (near[:, :, None] == promoted[features][:, None, :]).any(axis=(1, 2))
    total, agreeing = (
        np.bincount(owners, minlength=len(promoted)) for owners in (features, features[agrees])
    )
    share: Float[np.ndarray, " d_sae"] = agreeing / np.maximum(1, total)
    return share
