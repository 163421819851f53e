"""ReLU: a latent is active where its pre-activation is positive."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from sae.core.select import Above, Active, select
from sae.dictionary.activations.base import Activation, Encoder, Inputs, Latents, PerLatent


@dataclass(frozen=True, slots=True)
class ReLU(Activation):
    """`relu(pre)`."""

    name: ClassVar[str] = "standard"
    formula: ClassVar[str] = "relu(pre)"
    code: ClassVar[str] = "acts = torch.relu(pre)"
    transcodes_in_saelens: ClassVar[bool] = True

    def encode(self, products: Latents, b_enc: PerLatent) -> Latents:
        return torch.relu(products + b_enc)

    def select(self, x: Inputs, weight: Encoder, b_enc: PerLatent) -> Active:
        return select(x, weight, b_enc, Above(torch.zeros_like(b_enc)))[0]
