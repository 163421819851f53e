"""p-annealing: an L1 penalty that turns towards L0 over the run (arXiv 2408.00113).

Penalty: `λ s Σ_j (f_j ‖W_dec,j‖)^p` with p falling linearly from 1 to `p_end`. The factor
`s = Σ f ‖W‖ / Σ (f ‖W‖)^p` of the batch (detached) keeps the penalty as large as L1 would be,
as the paper's rescaling of λ does at each change of p.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.architectures.base import TrainableSAE, TrainingStep
from sae.architectures.standard import StandardConfig, StandardSAE
from sae.base import require
from sae.core.sparse import Support

# Added to activations under the power, whose slope is infinite at zero; activations are
# about 1 to 10 in the units of training.
_SOFT = 0.01


class PAnnealSAE(StandardSAE):
    """A ReLU autoencoder whose penalty changes its shape."""

    config: "PAnnealConfig"

    def p(self, progress: float) -> float:
        """The exponent, `progress` (0 to 1) of the way through the run."""
        start, end = self.config.anneal_start_fraction, self.config.anneal_end_fraction
        fallen = min(1.0, max(0.0, progress - start) / (end - start))
        return 1 - (1 - self.config.p_end) * fallen

    def step(
        self,
        x: Float[Tensor, "batch d_in"],
        y: Float[Tensor, "batch d_out"],
        progress: float,
        dead: Bool[Tensor, " d_sae"],
    ) -> TrainingStep:
        if self.p(progress) < 1:
            # The power belongs to active entries alone.
            self.active_share = 0.0
        return super().step(x, y, progress, dead)

    def penalty(
        self, values: Float[Tensor, " nnz"], support: Support, progress: float
    ) -> Float[Tensor, ""]:
        norms = torch.linalg.vector_norm(self.W_dec, dim=1)
        weighted = values * norms.index_select(0, support.columns)
        powers = (weighted + _SOFT).pow(self.p(progress)).sum()
        scale = weighted.detach().sum() / powers.detach().clamp_min(1e-12)
        penalty: Tensor = powers * scale / support.shape[0]
        return penalty


@dataclass(frozen=True, kw_only=True)
class PAnnealConfig(StandardConfig):
    """ReLU autoencoder with an Lp penalty, p falling over the run; saved as `standard`."""

    architecture: ClassVar[str] = "p_anneal"
    autoencoder: ClassVar[type[TrainableSAE]] = PAnnealSAE

    p_end: float = 0.2
    """Exponent p of the penalty at the end; it starts at one (arXiv 2408.00113: 0.2)."""
    anneal_start_fraction: float = 0.2
    """Share of the training after which p falls, linearly until `anneal_end_fraction`."""
    anneal_end_fraction: float = 0.8
    """Share of the training after which p stays; later changes find no time to be learned."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.p_end <= 1, f"sae.p_end={self.p_end}; give more than 0, up to 1")
        require(
            0 <= self.anneal_start_fraction < self.anneal_end_fraction <= 1,
            f"sae.anneal_start_fraction={self.anneal_start_fraction} and "
            f"sae.anneal_end_fraction={self.anneal_end_fraction}; give two rising shares of "
            "the run",
        )
