"""What a dictionary's directions say of its features: norms, neighbours, places on the map."""

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from sae.atlas.lists import list_array
from sae.atlas.schema import N_LISTED
from sae.dictionary import Dictionary


@torch.no_grad()
def nearest_features(
    w_dec: Float[Tensor, "d_sae d_out"], k: int
) -> tuple[Int[Tensor, "d_sae k"], Float[Tensor, "d_sae k"]]:
    """Find the `k` nearest decoder directions of every feature, and their cosines."""
    unit = torch.nn.functional.normalize(w_dec, dim=1)
    k = min(k, len(unit) - 1)
    indices, cosines = [], []
    for start in range(0, len(unit), 1024):
        block = unit[start : start + 1024] @ unit.t()
        own = torch.arange(len(block))
        block[own, own + start] = -2.0
        best = block.topk(k, dim=1)
        indices.append(best.indices.cpu())
        cosines.append(best.values.cpu())
    return torch.cat(indices), torch.cat(cosines)


def direction_columns(
    dictionary: Dictionary,
    neighbours: NDArray[np.int64],
    cosines: NDArray[np.float32],
    places: NDArray[np.float32],
) -> dict[str, object]:
    """Return the columns of `features.parquet` that need no text.

    Args:
        dictionary: on any device.
        neighbours: as `nearest_features` finds them, (d_sae, k); the first ten are listed.
        cosines: beside the neighbours, (d_sae, k).
        places: on the map, (d_sae, 2).
    """
    near, beside = neighbours[:, :N_LISTED].astype(np.int32), cosines[:, :N_LISTED]
    w_dec, w_enc = dictionary.W_dec.detach().float(), dictionary.W_enc.detach().float()
    return {
        "decoder_norm": w_dec.norm(dim=1).cpu().numpy(),
        "encoder_norm": w_enc.norm(dim=0).cpu().numpy(),
        "neighbours": list_array(near.ravel(), near.shape[1]),
        "neighbour_cosines": list_array(beside.ravel(), near.shape[1]),
        "map_x": places[:, 0],
        "map_y": places[:, 1],
    }
