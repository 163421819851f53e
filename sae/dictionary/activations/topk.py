"""TopK: the k largest latents of each row are active."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from sae.base import require
from sae.core import select as selection
from sae.core.select import Active
from sae.dictionary.activations.base import Activation, Encoder, Inputs, Latents, PerLatent


@dataclass(frozen=True, slots=True)
class TopK(Activation):
    """The `k` largest of `relu(pre)`, fewer where fewer are positive (arXiv 2406.04093)."""

    name: ClassVar[str] = "topk"
    formula: ClassVar[str] = "the k largest of relu(pre)"
    code: ClassVar[str] = """\
values, latents = torch.relu(pre).topk({k}, dim=-1)
acts = torch.zeros_like(pre).scatter(-1, latents, values)"""

    k: int
    """Latents of a row that are active, at most."""

    def encode(self, products: Latents, b_enc: PerLatent) -> Latents:
        positive = torch.relu(products + b_enc)
        # By index, so that equals at the edge never make more than k.
        values, latents = positive.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(positive).scatter(-1, latents, values)

    def select(self, x: Inputs, weight: Encoder, b_enc: PerLatent) -> Active:
        # Of equal latents at the edge the first are taken; `encode` leaves that to torch.
        return selection.select(x, weight, b_enc, selection.TopK(self.k))[0]

    def of_latents(self, latents: Int[Tensor, " kept"]) -> Activation:
        return replace(self, k=min(self.k, len(latents)))

    def check(self, d_sae: int) -> None:
        require(1 <= self.k <= d_sae, f"k={self.k}; give 1 to d_sae={d_sae}")
