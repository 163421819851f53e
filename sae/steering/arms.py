"""What steering with a feature is compared with: each arm of the comparison, and its title."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sae.core.nulls import random_directions
from sae.dictionary import Dictionary
from sae.edits import Edit, Spans, Splice
from sae.edits.copies import Copies
from sae.edits.positions import EVERYWHERE
from sae.models import Site
from sae.steering.material import Ids

VECTORS = {
    "feature": "This feature",
    "difference_of_means": "Difference of means",
    "random_direction": "Random direction",
    "random_feature": "Random feature",
}
"""Arms that add a vector, each in doses."""
BASELINES = {
    "prompt": "Plain prompt",
    "difference_of_means": "Difference of means",
    "wrong_sign": "Wrong sign",
    "random_direction": "Random direction",
    "random_feature": "Random feature",
    "reconstruction": "Reconstruction only",
}
"""What a feature is to beat."""
TITLES = VECTORS | BASELINES | {"unsteered": "Unsteered"}


def difference_of_means(
    copies: Copies, positive: Sequence[Ids], negative: Sequence[Ids]
) -> Float[Tensor, " d_out"]:
    """Return the mean activation in some texts less that in others, first positions left out.

    It is what labelled text gives without any dictionary, and was ahead of its features in
    AxBench (Wu et al. 2025).
    """
    means = []
    for texts in (positive, negative):
        rows = [copies.activations(text)[1:] for text in texts]
        means.append(torch.cat(rows).double().mean(0))
    found: Tensor = (means[0] - means[1]).float()
    return found


def reconstruction(
    dictionary: Dictionary, reads: Site, writes: Site, sequences: Sequence[bool]
) -> Edit:
    """Return the edit that shows the model what a dictionary makes of its activations.

    Args:
        sequences: which of a batch it is made in.
    """
    each = tuple(EVERYWHERE if chosen else () for chosen in sequences)
    positions = Spans(but=((0, 1),), each=each)
    return Edit(writes, Splice(dictionary), positions, None if reads == writes else reads)


def unit_dose(
    dictionary: Dictionary, feature: int, max_activation: float
) -> Float[Tensor, " d_out"]:
    """Return what strength 1 of a feature adds: its direction times its highest activation.

    Where the dictionary reads each row by its own length, that is the unit.
    """
    return dictionary.W_dec[feature].float() * max_activation


def random_direction(like: Float[Tensor, " d_out"], seed: int) -> Float[Tensor, " d_out"]:
    """Return a direction drawn evenly from all, with the norm of `like`."""
    (unit,) = random_directions(1, len(like), seed).to(like)
    scaled: Tensor = unit * torch.linalg.vector_norm(like)
    return scaled
