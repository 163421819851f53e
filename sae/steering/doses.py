"""What steering adds to activations: features in doses, and a baseline of equal size."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionary import Dictionary
from sae.edits import ALL_BUT_FIRST, Add, Edit
from sae.models import Site


def unit_dose(
    dictionary: Dictionary, feature: int, max_activation: float
) -> Float[Tensor, " d_out"]:
    """Return what strength 1 of a feature adds: its direction times its highest activation."""
    return dictionary.W_dec[feature].float() * max_activation


def random_direction(like: Float[Tensor, " d_out"], seed: int) -> Float[Tensor, " d_out"]:
    """Return a direction drawn evenly from all, with the norm of `like`."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(like.shape, generator=generator).to(like)
    scaled: Tensor = drawn * (torch.linalg.vector_norm(like) / torch.linalg.vector_norm(drawn))
    return scaled


def steered(
    site: Site, vectors: Float[Tensor, " d_out"] | Float[Tensor, "sequence d_out"]
) -> Edit:
    """Return the edit that steers: vectors are added at every position but the first.

    Args:
        vectors: one for all sequences of a batch, or one for each; a sequence whose vector is
            zero keeps its activations to the bit.
    """
    return Edit(site, Add(vectors), ALL_BUT_FIRST)
