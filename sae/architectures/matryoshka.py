"""Matryoshka BatchTopK autoencoder: nested dictionaries in one (arXiv 2503.17547).

One BatchTopK selection over all latents; the loss is the mean over levels of
`‖x − x̂_g‖²`, where `x̂_g` decodes the active latents of the first `m_g` only. So early latents
have to be general, and later ones may be special without being absorbed. All levels come from
one decode by prefix sums, and their gradients by suffix sums.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae.architectures.base import TrainableSAE
from sae.architectures.batch_topk import BatchTopKConfig, BatchTopKSAE
from sae.base import require
from sae.core.select import Active
from sae.core.sparse import Reconstruction, reconstruct_on

# What each level adds, as shares of all latents (dictionary_learning's and SAEBench's).
LEVEL_SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)


class MatryoshkaSAE(BatchTopKSAE):
    """A BatchTopK autoencoder whose prefixes are autoencoders."""

    config: "MatryoshkaConfig"

    def prepare(self, sample: Float[Tensor, "rows d_in"]) -> None:
        super().prepare(sample)
        widths = self.config.level_widths
        self.level_ends: Tensor
        self.level_weights: Tensor
        self.register_buffer("level_ends", torch.tensor(widths), persistent=False)
        shares = sample.new_full((len(widths),), 1 / len(widths))
        self.register_buffer("level_weights", shares, persistent=False)
        self._workspace: Tensor | None = None

    def reconstruct(
        self,
        active: Active,
        values: Float[Tensor, " nnz"],
        target: Float[Tensor, "batch d_out"],
    ) -> Reconstruction:
        shape = (len(target), len(self.level_weights), target.shape[1])
        if self._workspace is None or self._workspace.shape != shape:
            self._workspace = target.new_empty(shape)
        return reconstruct_on(
            active.support,
            values,
            self.W_dec,
            target,
            self.level_ends,
            self.level_weights,
            self._workspace,
        )


@dataclass(frozen=True, kw_only=True)
class MatryoshkaConfig(BatchTopKConfig):
    """Nested BatchTopK autoencoder, saved as a JumpReLU (SAELens's `matryoshka_batchtopk`)."""

    architecture: ClassVar[str] = "matryoshka_batchtopk"
    autoencoder: ClassVar[type[TrainableSAE]] = MatryoshkaSAE

    matryoshka_widths: list[int] | None = None
    """Numbers of latents of the inner levels, rising; by default 1/32, 3/32, 7/32 and 15/32 of
    all latents."""

    def __post_init__(self) -> None:
        super().__post_init__()
        widths = [0, *self.level_widths]
        require(
            all(a < b for a, b in pairwise(widths)),
            f"sae.matryoshka_widths={self.matryoshka_widths} is impossible; give rising "
            f"widths, above 0 and below sae.d_sae={self.d_sae}",
        )

    @property
    def level_widths(self) -> list[int]:
        """How many latents each level has, the last one all."""
        if self.matryoshka_widths is not None:
            return [*self.matryoshka_widths, self.d_sae]
        ends = [int(sum(LEVEL_SHARES[: i + 1]) * self.d_sae) for i in range(len(LEVEL_SHARES))]
        # Tiny dictionaries cannot have them all.
        return sorted({end for end in ends if end} | {self.d_sae})
