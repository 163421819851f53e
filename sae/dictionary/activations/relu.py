"""ReLU: a latent is active where its pre-activation is positive."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae.core.select import Above, Active, select
from sae.dictionary.activations.base import Activation


@dataclass(frozen=True, slots=True)
class ReLU(Activation):
    """`relu(pre)`."""

    name: ClassVar[str] = "standard"
    formula: ClassVar[str] = "relu(pre)"
    code: ClassVar[str] = "acts = torch.relu(pre)"
    transcodes_in_saelens: ClassVar[bool] = True

    def encode(
        self, products: Float[Tensor, "... d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> Float[Tensor, "... d_sae"]:
        return torch.relu(products + b_enc)

    def select(
        self,
        x: Float[Tensor, "rows d_in"],
        weight: Float[Tensor, "d_sae d_in"],
        b_enc: Float[Tensor, " d_sae"],
    ) -> Active:
        (active,) = select(x, weight, b_enc, Above(torch.zeros_like(b_enc)))
        return active
