"""ReLU autoencoder with an L1 penalty.

Loss: `‖x − x̂‖² + λ Σ_j f_j ‖W_dec,j‖` with `f = relu(W_enc x + b_enc)` and free decoder norms
(Anthropic, "Update on how we train SAEs", April 2024), or with decoder rows of norm one
(Bricken et al. 2023), where the penalty is the plain L1 norm.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae.architectures.base import ArchitectureConfig, TrainableSAE, TrainingStep, level
from sae.architectures.penalty import Coefficient
from sae.base import require
from sae.core.fidelity import squared_error, weighted_l1, weighted_l1_on
from sae.core.select import Above
from sae.core.sparse import Support, encode_on, reconstruct_on
from sae.dictionary import Activation, ReLU

# Above this share of active latents the dense products are the faster ones (two cores,
# d_in 576: the sparse step wins at every width from 2,304 up once L0 is below d_sae / 8).
SPARSE_BELOW = 0.125

# A penalised autoencoder starts with as many active latents a row, by a bias below zero.
INITIAL_L0 = 32.0


@dataclass(frozen=True, kw_only=True)
class PenalisedConfig(ArchitectureConfig):
    """An autoencoder whose sparsity comes from an L1 penalty."""

    l1_coefficient: float = 4.0
    """Weight of the L1 penalty, where each coordinate of the input has mean square one."""
    l1_warm_up_fraction: float = 0.1
    """Share of the training over which the weight rises linearly from zero."""
    target_l0: float | None = None
    """L0 to reach by moving the weight, which then only starts at `l1_coefficient`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_not_negative("l1_coefficient", "2 to 10 are usual")
        self.check_share("l1_warm_up_fraction")
        self.check_target_l0(self.target_l0)

    @property
    def short_name(self) -> str:
        penalty = (
            f"l1-{self.l1_coefficient:g}"
            if self.target_l0 is None
            else f"l0-{self.target_l0:g}"
        )
        return f"{self.architecture}-{self.d_sae}-{penalty}"

    def coefficient(self) -> Coefficient:
        """The penalty's weight over a run."""
        return Coefficient(self.l1_coefficient, self.l1_warm_up_fraction, self.target_l0)


class StandardSAE(TrainableSAE):
    """Dense steps while many latents are active, sparse ones from then on."""

    config: "StandardConfig"

    def prepare(self, sample: Float[Tensor, "rows d_in"]) -> None:
        self.unit_norm_decoder = self.config.decoder_norm == "unit"
        self.coefficient = self.config.coefficient()
        start_sparse(self, sample)
        # The last step's share of active latents decides how the next one is computed. It is
        # state, because a resumed run has to take the same path to end in the same bits.
        self.active_share = INITIAL_L0 / self.d_sae

    def get_extra_state(self) -> Float[Tensor, "..."]:
        """What a resumed run needs besides parameters."""
        return torch.tensor(self.active_share, dtype=torch.float64)

    def set_extra_state(self, state: Float[Tensor, "..."]) -> None:
        """Continue from `get_extra_state`."""
        self.active_share = float(state)

    def activation(
        self, pre_acts: Float[Tensor, "batch d_sae"]
    ) -> Float[Tensor, "batch d_sae"]:
        return torch.relu(pre_acts - level(pre_acts, INITIAL_L0))

    def step(
        self,
        x: Float[Tensor, "batch d_in"],
        y: Float[Tensor, "batch d_out"],
        progress: float,
        dead: Bool[Tensor, " d_sae"],
    ) -> TrainingStep:
        sparse = self.active_share < SPARSE_BELOW
        mse, penalty, fired, n_active = (self._sparse if sparse else self._dense)(
            x, y, progress
        )
        self.active_share = n_active / (len(x) * self.d_sae)
        coefficient = self.coefficient.at(progress)
        self.coefficient.observe(n_active / len(x), progress)
        l1 = coefficient * penalty
        losses: dict[str, Tensor | float] = {
            "losses/l1_loss": l1.detach(),
            "details/l1_coefficient": coefficient,
        }
        return TrainingStep(mse + l1, mse.detach(), losses, fired)

    def _dense(
        self, x: Tensor, y: Tensor, progress: float
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        feature_acts = torch.relu(nn.functional.linear(x, self.encoder(), self.b_enc))
        fired = (feature_acts.detach() > 0).sum(0)
        mse = squared_error(self.target(x, y), feature_acts @ self.W_dec)
        penalty = weighted_l1(feature_acts, self.W_dec)
        return mse, penalty, fired, int(fired.sum())

    def _sparse(
        self, x: Tensor, y: Tensor, progress: float
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        encoder = self.encoder()
        (active,) = self.select(x, encoder, Above(torch.zeros_like(self.b_enc)))
        values = encode_on(active.support, active.values, x, encoder, self.b_enc)
        mse = reconstruct_on(active.support, values, self.W_dec, self.target(x, y)).loss
        penalty = self.penalty(values, active.support, progress)
        return mse, penalty, active.support.counts(), len(values)

    def penalty(
        self, values: Float[Tensor, " nnz"], support: Support, progress: float
    ) -> Float[Tensor, ""]:
        """What the coefficient weighs, of sparse activations."""
        return weighted_l1_on(values, support.columns, self.W_dec, support.shape[0])


@dataclass(frozen=True, kw_only=True)
class StandardConfig(PenalisedConfig):
    """ReLU autoencoder with an L1 penalty (SAELens's `standard`)."""

    architecture: ClassVar[str] = "standard"
    saved_as: ClassVar[type[Activation]] = ReLU
    autoencoder: ClassVar[type[TrainableSAE]] = StandardSAE

    decoder_norm: str = "free"
    """Norm of the decoder's rows: `free`, with a penalty that counts it (Anthropic, April
    2024), or `unit`, kept at one (2023)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.decoder_norm in ("free", "unit"),
            f"sae.decoder_norm={self.decoder_norm} is unknown; choose free or unit",
        )


def start_sparse(sae: TrainableSAE, sample: Float[Tensor, "rows d_in"]) -> None:
    """Set the encoder's bias so that `INITIAL_L0` latents are active in a row."""
    pre_acts = sample[:1024] @ sae.encoder().detach().t()
    sae.b_enc.data.fill_(-level(pre_acts, INITIAL_L0))
