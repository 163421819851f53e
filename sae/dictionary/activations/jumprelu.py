"""JumpReLU: a latent is active where its pre-activation is above a threshold of its own."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from sae.core.select import Above, Active, select
from sae.dictionary.activations.base import Activation, Encoder, Inputs, Latents, PerLatent


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

    def encode(self, products: Latents, b_enc: PerLatent) -> Latents:
        pre_acts = products + b_enc
        return torch.relu(pre_acts) * (pre_acts > self.threshold)

    def select(self, x: Inputs, weight: Encoder, b_enc: PerLatent) -> Active:
        return select(x, weight, b_enc, Above(self.threshold.clamp_min(0)))[0]

    def scaled(self, gains: PerLatent | float) -> Activation:
        return replace(self, threshold=self.threshold * gains)
