"""Centring and scaling of activations for training, undone exactly in the saved weights."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.base import require
from sae.core import PerLatent, Vectors, Weight

SINK_NORM_MULTIPLE = 10.0
"""Activations of a norm above this multiple of the median count as attention sinks."""
# Squares of rows of this size, summed over any width, are still numbers of float32; so are the
# squares of what scales them to one.
_LARGEST = 1e15


@dataclass(frozen=True, slots=True)
class InputScaling:
    """`x ↦ (x − mean) · scale`: what the trainer shows an autoencoder instead of `x`.

    With `scale = √d_in / √(mean ‖x − mean‖²)` every coordinate has a mean square of one on
    average, so one learning rate and one penalty mean the same in every model and layer
    (`E‖x‖² = d_in`, as in Anthropic's April 2024 update, here after centring).
    """

    mean: Float[Tensor, " d_in"]
    scale: float

    @classmethod
    def of(cls, x: Float[Tensor, "row d_in"]) -> "InputScaling":
        """Return the scaling of rows, whose moments are summed in float64.

        Raises:
            UserError: if rows hold NaN or infinity, or are all the same.
        """
        mean = x.mean(0, dtype=torch.float64)
        square_distance = float((x.double() - mean).square().sum(1).mean())
        require(
            not math.isnan(square_distance),
            "the rows contain NaN or infinity as float32, so nothing was trained; check "
            "the cache with sae cache verify",
        )
        require(square_distance > 0, "all rows are the same, so there is nothing to learn")
        size = (square_distance / mean.numel()) ** 0.5
        require(
            1 / _LARGEST <= size <= _LARGEST,
            f"the rows are about {size:.1e} in size (root mean square of a coordinate around "
            f"its mean), and float32 has room for what is trained on sizes from "
            f"{1 / _LARGEST:g} to {_LARGEST:g}; multiply the rows by "
            f"1e{-round(math.log10(size))}",
        )
        return cls(mean.float(), (mean.numel() / square_distance) ** 0.5)

    def __call__(self, x: Vectors) -> Vectors:
        return (x.float() - self.mean).mul_(self.scale)

    def fold_encoder(
        self, w_enc: Float[Tensor, "d_in d_sae"], b_enc: PerLatent
    ) -> tuple[Float[Tensor, "d_in d_sae"], PerLatent]:
        """Return encoder weights that do on raw `x` what the given ones do on scaled `x`."""
        w = w_enc.double() * self.scale
        return w.float(), (b_enc.double() - self.mean.double() @ w).float()

    def fold_decoder(
        self, w_dec: Weight, b_dec: Float[Tensor, " d_in"]
    ) -> tuple[Weight, Float[Tensor, " d_in"]]:
        """Return decoder weights that return raw `x` where the given ones return scaled `x`."""
        b = b_dec.double() / self.scale + self.mean.double()
        return (w_dec.double() / self.scale).float(), b.float()

    def unfold_encoder(
        self, w_enc: Float[Tensor, "d_in d_sae"], b_enc: PerLatent
    ) -> tuple[Float[Tensor, "d_in d_sae"], PerLatent]:
        """Return encoder weights that do on scaled `x` what the given ones do on raw `x`."""
        w = w_enc.double()
        return (w / self.scale).float(), (b_enc.double() + self.mean.double() @ w).float()

    def unfold_decoder(
        self, w_dec: Weight, b_dec: Float[Tensor, " d_in"]
    ) -> tuple[Weight, Float[Tensor, " d_in"]]:
        """Return decoder weights that return scaled `x` where the given ones return raw `x`."""
        b = (b_dec.double() - self.mean.double()) * self.scale
        return (w_dec.double() * self.scale).float(), b.float()
