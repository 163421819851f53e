"""Gated: whether a latent is active and how strongly are computed apart."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from sae.core.select import Above, Active, select
from sae.core.sparse import support_of
from sae.dictionary.activations.base import Activation, Encoder, Inputs, Latents, PerLatent


@dataclass(frozen=True, slots=True)
class Gated(Activation):
    """`relu(exp(r_mag) * products + b_mag)` where `pre > 0` (arXiv 2404.16014).

    The encoder's bias `b_enc` is the gate's.
    """

    name: ClassVar[str] = "gated"
    formula: ClassVar[str] = "relu(exp(r_mag) * (x @ W_enc) + b_mag) where pre > 0"
    code: ClassVar[str] = """\
size = torch.relu(w["r_mag"].exp() * (x @ w["W_enc"]) + w["b_mag"])
acts = size * (pre > 0)"""
    names_in_file: ClassVar[Mapping[str, str]] = {"b_enc": "b_gate"}

    b_mag: Tensor
    """Bias of the magnitudes, (d_sae,)."""
    r_mag: Tensor
    """Logarithm of the magnitudes' scale against the gate's, (d_sae,)."""

    def encode(self, products: Latents, b_enc: PerLatent) -> Latents:
        return torch.relu(self.r_mag.exp() * products + self.b_mag) * (products + b_enc > 0)

    def select(self, x: Inputs, weight: Encoder, b_enc: PerLatent) -> Active:
        # The bound carries the gate's bias, so that the magnitudes see the bare products.
        ((support, products),) = select(x, weight, torch.zeros_like(b_enc), Above(-b_enc))
        columns = support.columns
        values = torch.relu(self.r_mag.exp()[columns] * products + self.b_mag[columns])
        fires = values > 0
        before = torch.cat([fires.new_zeros(1, dtype=torch.int64), fires.cumsum(0)])
        counts = before[support.row_ends.long()].diff()
        return Active(support_of(counts, columns[fires], len(b_enc)), values[fires])

    def scaled(self, gains: PerLatent | float) -> Activation:
        # `r_mag` is a ratio of two products that both grow by the gain.
        return replace(self, b_mag=self.b_mag * gains)

    def shifted(self, shift: PerLatent) -> Activation:
        return replace(self, b_mag=self.b_mag + self.r_mag.exp() * shift)
