"""Directions that an autoencoder begins with, and how far from them it may move."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

SOFTLY = 0.8
"""The least cosine with its first direction that `decoder_softly` leaves a row of the decoder
(Korznikov et al., arXiv 2602.14111)."""

Directions = Float[Tensor, "d_sae width"]
Sample = Float[Tensor, "row width"]


def within_cone(rows: Directions, axes: Directions) -> Directions:
    """Return the rows, moved to a cosine of `SOFTLY` with their axes where it was less.

    Lengths stay. The axes have norm one.
    """
    unit = nn.functional.normalize
    norms = rows.norm(dim=1, keepdim=True)
    along = (rows * axes).sum(1, keepdim=True) / norms.clamp_min(1e-12)
    across = unit(rows - (rows * axes).sum(1, keepdim=True) * axes, dim=1)
    edge = unit(SOFTLY * axes + math.sqrt(1 - SOFTLY**2) * across, dim=1)
    return torch.where(along < SOFTLY, norms * edge, rows)


def random_directions(d_sae: int, sample: Sample, generator: torch.Generator) -> Directions:
    """Return unit directions drawn evenly, which know nothing of the sample but its width."""
    drawn = torch.randn(d_sae, sample.shape[1], generator=generator, dtype=sample.dtype)
    return nn.functional.normalize(drawn, dim=1).to(sample.device)


def initial_directions(d_sae: int, sample: Sample, generator: torch.Generator) -> Directions:
    """Return unit directions halfway between random rows of the sample and random noise.

    Rows point where the data is, so latents live and the error falls sooner than from noise
    alone; the noise keeps frequent rows from giving the same direction twice.
    """
    rows = torch.randint(len(sample), (d_sae,), generator=generator)
    noise = torch.randn(d_sae, sample.shape[1], generator=generator, dtype=sample.dtype)
    unit = nn.functional.normalize
    noise = unit(noise, dim=1).to(sample.device)
    mixed = unit(sample[rows], dim=1) + noise
    # In one dimension every other row is the opposite of its noise, and nothing is left.
    return unit(torch.where(mixed.any(1, keepdim=True), mixed, noise), dim=1)
