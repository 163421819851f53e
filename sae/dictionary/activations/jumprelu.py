"""JumpReLU: a latent is active where its pre-activation is above a threshold of its own."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae.core.select import Above, Active, select
from sae.dictionary.activations.base import Activation


@dataclass(frozen=True, slots=True)
class JumpReLU(Activation):
    """`relu(pre)` where `pre > threshold` (arXiv 2407.14435)."""

    name: ClassVar[str] = "jumprelu"
    formula: ClassVar[str] = "relu(pre) where pre > threshold"
    code: ClassVar[str] = 'acts = torch.relu(pre) * (pre > w["threshold"])'
    transcodes_in_saelens: ClassVar[bool] = True
    never: ClassVar[tuple[str, ...]] = ("threshold",)

    threshold: Tensor
    """What each pre-activation has to exceed, (d_sae,)."""

    def encode(
        self, products: Float[Tensor, "... d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> Float[Tensor, "... d_sae"]:
        pre_acts = products + b_enc
        return torch.relu(pre_acts) * (pre_acts > self.threshold)

    def select(
        self,
        x: Float[Tensor, "rows d_in"],
        weight: Float[Tensor, "d_sae d_in"],
        b_enc: Float[Tensor, " d_sae"],
    ) -> Active:
        (active,) = select(x, weight, b_enc, Above(self.threshold.clamp_min(0)))
        return active

    def scaled(self, gains: Float[Tensor, " d_sae"] | float) -> Activation:
        return self.changed(lambda threshold: threshold * gains)
