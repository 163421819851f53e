"""Autoencoders whose sparsity comes from an L1 penalty: ReLU, p-annealed, and gated."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae.architectures.base import (
    ArchitectureConfig,
    Latents,
    PerLatent,
    Rows,
    Silent,
    Targets,
    TrainableSAE,
    TrainingStep,
    level,
)
from sae.base import require
from sae.core.fidelity import row_norms, squared_error, weighted_l1, weighted_l1_on
from sae.core.scaling import InputScaling
from sae.core.select import Above
from sae.core.sparse import Support, encode_on, reconstruct_on
from sae.dictionary import Activation, Dictionary, Gated, ReLU

# Of the controller. Its goal falls from 8 times the target to the target over the first 0.6 of
# the run: at the start L0 is far too high whatever the coefficient is, and a coefficient that
# tries to mend it at once ruins the directions (docs/log.md). The error is log(L0 / goal).
FIRST_GOAL = 8.0
GOAL_REACHED = 0.6
INTEGRAL_GAIN = 4e-2
PROPORTIONAL_GAIN = 3.0
# The most of an error that counts, so that a far start does not wind the integral up.
MOST_INTEGRATED = 0.3
MOST_PROPORTIONAL = 2.0


class Coefficient(nn.Module):
    """The penalty's weight over a run.

    Without `target_l0` the weight rises linearly to `final` over `warm_up` of the run. With
    it, `final` is where the weight starts, and after each step its logarithm moves by the
    logarithm of how far the batch's L0 is off: a proportional-integral controller.
    """

    def __init__(self, final: float, warm_up: float, target_l0: float | None) -> None:
        super().__init__()
        self.final = final
        self.warm_up = warm_up
        self.target_l0 = target_l0
        # Kept on the CPU in float64: the next step needs it there, and resuming needs its bits.
        self.log_scale = 0.0
        self.error = 0.0

    def get_extra_state(self) -> Float[Tensor, "..."]:
        return torch.tensor([self.log_scale, self.error], dtype=torch.float64)

    def set_extra_state(self, state: Float[Tensor, "..."]) -> None:
        self.log_scale, self.error = state.tolist()

    def at(self, progress: float) -> float:
        """Return the weight, `progress` (0 to 1) of the way through the run."""
        rising = min(1.0, progress / self.warm_up) if self.warm_up else 1.0
        return self.final * rising * math.exp(self.log_scale + PROPORTIONAL_GAIN * self.error)

    def observe(self, l0: float, progress: float) -> None:
        """Move towards the target, once the warm-up is over; `l0` is the step's."""
        if self.target_l0 is None or progress < self.warm_up:
            return
        goal = self.target_l0 * FIRST_GOAL ** max(0.0, 1 - progress / GOAL_REACHED)
        error = math.log(max(l0, 1e-3) / goal)
        self.error = max(-MOST_PROPORTIONAL, min(MOST_PROPORTIONAL, error))
        self.log_scale += INTEGRAL_GAIN * max(-MOST_INTEGRATED, min(MOST_INTEGRATED, error))


# Above this share of active latents the dense products are the faster ones (two cores,
# d_in 576: the sparse step wins at every width from 2,304 up once L0 is below d_sae / 8).
SPARSE_BELOW = 0.125

# A penalised autoencoder starts with as many active latents a row, by a bias below zero.
INITIAL_L0 = 32.0


@dataclass(frozen=True, kw_only=True)
class PenalisedConfig(ArchitectureConfig):
    """An autoencoder whose sparsity comes from an L1 penalty."""

    l1_coefficient: float = 4.0
    """Weight of the L1 penalty, for inputs that are scaled so that a coordinate has mean square
    one."""
    l1_warm_up_fraction: float = 0.1
    """Share of the training over which the weight rises linearly from zero."""
    target_l0: float | None = None
    """L0 that the training is to reach by changing the weight of the penalty. `l1_coefficient`
    is then only its first value."""

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
        """Return the penalty's weight over a run."""
        return Coefficient(self.l1_coefficient, self.l1_warm_up_fraction, self.target_l0)


class StandardSAE(TrainableSAE):
    """ReLU autoencoder with an L1 penalty.

    Loss: `‖x − x̂‖² + λ Σ_j f_j ‖W_dec,j‖` with `f = relu(W_enc x + b_enc)` and free decoder
    norms (Anthropic, "Update on how we train SAEs", April 2024), or with decoder rows of norm
    one (Bricken et al. 2023), where the penalty is the plain L1 norm. Steps are dense while
    many latents are active, and sparse from then on.
    """

    config: "StandardConfig"

    def prepare(self, sample: Rows) -> None:
        self.unit_norm_decoder = self.config.decoder_norm == "unit"
        self.coefficient = self.config.coefficient()
        start_sparse(self, sample)
        # The last step's share of active latents decides how the next one is computed. It is
        # state, because a resumed run has to take the same path to end in the same bits.
        self.active_share = INITIAL_L0 / self.d_sae

    def get_extra_state(self) -> Float[Tensor, "..."]:
        return torch.tensor(self.active_share, dtype=torch.float64)

    def set_extra_state(self, state: Float[Tensor, "..."]) -> None:
        self.active_share = float(state)

    def activation(self, pre_acts: Latents) -> Latents:
        return torch.relu(pre_acts - level(pre_acts, INITIAL_L0))

    def step(self, x: Rows, y: Targets, progress: float, dead: Silent) -> TrainingStep:
        sparse = self.active_share < SPARSE_BELOW
        found = self._sparse(x, y, progress) if sparse else self._dense(x, y)
        mse, penalty, fired, n_active, others = found
        self.active_share = n_active / (len(x) * self.d_sae)
        coefficient = self.coefficient.at(progress)
        self.coefficient.observe(n_active / len(x), progress)
        l1 = coefficient * penalty
        losses: dict[str, Tensor | float] = {
            "losses/l1_loss": l1.detach(),
            "details/l1_coefficient": coefficient,
            **others,
        }
        return TrainingStep(mse + l1, mse.detach(), losses, fired)

    def _dense(
        self, x: Rows, y: Targets
    ) -> tuple[Tensor, Tensor, Tensor, int, dict[str, float]]:
        feature_acts = torch.relu(nn.functional.linear(x, self.encoder(), self.b_enc))
        fired = (feature_acts.detach() > 0).sum(0)
        mse = squared_error(self.target(x, y), feature_acts @ self.W_dec)
        penalty = weighted_l1(feature_acts, self.W_dec)
        return mse, penalty, fired, int(fired.sum()), {}

    def _sparse(
        self, x: Tensor, y: Tensor, progress: float
    ) -> tuple[Tensor, Tensor, Tensor, int, dict[str, float]]:
        encoder = self.encoder()
        active, candidates = self.select(x, encoder, Above(torch.zeros_like(self.b_enc)))
        values = encode_on(active.support, active.values, x, encoder, self.b_enc)
        mse = reconstruct_on(active.support, values, self.W_dec, self.target(x, y)).loss
        penalty = self.penalty(values, active.support, progress)
        others = {"details/candidates": candidates}
        return mse, penalty, active.support.counts(), len(values), others

    def penalty(
        self, values: Float[Tensor, " nnz"], support: Support, progress: float
    ) -> Float[Tensor, ""]:
        """Return what the coefficient weighs, of sparse activations."""
        return weighted_l1_on(values, support.columns, self.W_dec, support.shape[0])


@dataclass(frozen=True, kw_only=True)
class StandardConfig(PenalisedConfig):
    """ReLU autoencoder with an L1 penalty (SAELens's `standard`)."""

    architecture = "standard"
    saved_as = ReLU
    autoencoder = StandardSAE

    decoder_norm: str = "free"
    """Norm of the decoder's rows: `free`, where the penalty is multiplied by the norm
    (Anthropic, April 2024), or `unit`, where it is kept at one (Bricken et al. 2023)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.decoder_norm in ("free", "unit"),
            f"sae.decoder_norm={self.decoder_norm} is unknown; choose free or unit",
        )


def start_sparse(sae: TrainableSAE, sample: Rows) -> None:
    """Set the encoder's bias so that `INITIAL_L0` latents are active in a row."""
    pre_acts = sample[:1024] @ sae.encoder().detach().t()
    sae.b_enc.data.fill_(-level(pre_acts, INITIAL_L0))


# Added to activations under the power, whose slope is infinite at zero; activations are
# about 1 to 10 in the units of training.
_SOFT = 0.01


class PAnnealSAE(StandardSAE):
    """p-annealing: an L1 penalty that turns towards L0 over the run (arXiv 2408.00113).

    Penalty: `λ s Σ_j (f_j ‖W_dec,j‖)^p` with p falling linearly from 1 to `p_end`. The factor
    `s = Σ f ‖W‖ / Σ (f ‖W‖)^p` of the batch (detached) keeps the penalty as large as L1 would
    be, as the paper's rescaling of λ does at each change of p.
    """

    config: "PAnnealConfig"

    def p(self, progress: float) -> float:
        """Return the exponent, `progress` (0 to 1) of the way through the run."""
        start, end = self.config.anneal_start_fraction, self.config.anneal_end_fraction
        fallen = min(1.0, max(0.0, progress - start) / (end - start))
        return 1 - (1 - self.config.p_end) * fallen

    def step(self, x: Rows, y: Targets, progress: float, dead: Silent) -> TrainingStep:
        if self.p(progress) < 1:
            # The power belongs to active entries alone.
            self.active_share = 0.0
        return super().step(x, y, progress, dead)

    def penalty(
        self, values: Float[Tensor, " nnz"], support: Support, progress: float
    ) -> Float[Tensor, ""]:
        norms = row_norms(self.W_dec)
        weighted = values * norms.index_select(0, support.columns)
        powers = (weighted + _SOFT).pow(self.p(progress)).sum()
        scale = weighted.detach().sum() / powers.detach().clamp_min(1e-12)
        penalty: Tensor = powers * scale / support.shape[0]
        return penalty


@dataclass(frozen=True, kw_only=True)
class PAnnealConfig(StandardConfig):
    """ReLU autoencoder with an Lp penalty, p falling over the run; saved as `standard`."""

    architecture = "p_anneal"
    autoencoder = PAnnealSAE

    p_end: float = 0.2
    """Exponent p of the penalty at the end of the training. It starts at one (arXiv 2408.00113
    ends at 0.2)."""
    anneal_start_fraction: float = 0.2
    """Share of the training after which p falls, linearly until `anneal_end_fraction`."""
    anneal_end_fraction: float = 0.8
    """Share of the training after which p stays the same, so that there is time left to train
    with its last value."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.p_end <= 1, f"sae.p_end={self.p_end}; give more than 0, up to 1")
        require(
            0 <= self.anneal_start_fraction < self.anneal_end_fraction <= 1,
            f"sae.anneal_start_fraction={self.anneal_start_fraction} and "
            f"sae.anneal_end_fraction={self.anneal_end_fraction}; give two rising shares of "
            "the run",
        )


class GatedSAE(TrainableSAE):
    """Gated autoencoder: whether a latent is active, and how strongly, are told apart.

    `π = W_enc x + b_enc` opens the gate where it is positive; the activation there is
    `relu(exp(r_mag) W_enc x + b_mag)`. Loss: `‖x − x̂‖² + λ Σ relu(π) + ‖x − x̂(relu(π))‖²`, the
    last through a decoder that takes no gradient from it; decoder rows have norm one
    (Rajamanoharan et al., arXiv 2404.16014). Both penalties act where the gate is open and
    nowhere else, so one product with the encoder is all that is dense.
    """

    unit_norm_decoder = True
    config: "GatedConfig"

    def prepare(self, sample: Rows) -> None:
        self.coefficient = self.config.coefficient()
        start_sparse(self, sample)
        self.b_mag = nn.Parameter(self.b_enc.detach().clone())
        self.r_mag = nn.Parameter(torch.zeros_like(self.b_enc))

    def activation(self, pre_acts: Latents) -> Latents:
        return torch.relu(pre_acts - level(pre_acts, INITIAL_L0))

    def step(self, x: Rows, y: Targets, progress: float, dead: Silent) -> TrainingStep:
        encoder, target = self.encoder(), self.target(x, y)
        active, candidates = self.select(x, encoder, Above(torch.zeros_like(self.b_enc)))
        support, columns = active.support, active.support.columns
        gates = encode_on(support, active.values, x, encoder, self.b_enc)
        read = gates - self.b_enc.index_select(0, columns)
        scales = self.r_mag.exp().index_select(0, columns)
        values = torch.relu(scales * read + self.b_mag.index_select(0, columns))
        main = reconstruct_on(support, values, self.W_dec, target)
        frozen = reconstruct_on(support, gates, self.W_dec.detach(), target.detach())
        coefficient = self.coefficient.at(progress)
        l1 = coefficient * gates.sum() / len(x)
        # A gate may be open on a magnitude of zero; only what the decoder sees is active.
        open_and_active = values.detach() > 0
        fired = torch.zeros_like(support.column_ends[1:]).index_add_(
            0, columns, open_and_active.int()
        )
        self.coefficient.observe(float(open_and_active.sum()) / len(x), progress)
        losses: dict[str, Tensor | float] = {
            "losses/l1_loss": l1.detach(),
            "losses/auxiliary_reconstruction_loss": frozen.loss.detach(),
            "details/l1_coefficient": coefficient,
            "details/candidates": candidates,
        }
        return TrainingStep(main.loss + l1 + frozen.loss, main.mse[-1], losses, fired)

    def trained_activation(self, gains: PerLatent, b_enc: PerLatent) -> Activation:
        # The magnitude reads `W_enc x` without the gate's bias: it folds the mean by itself.
        moved = b_enc - self.b_enc.detach() * gains
        b_mag = self.b_mag.detach() * gains + self.r_mag.detach().exp() * moved
        return Gated(b_mag.float(), self.r_mag.detach().float().clone())

    def take_activation(
        self, dictionary: Dictionary, gains: PerLatent, scaling: InputScaling
    ) -> None:
        gated = dictionary.activation
        assert isinstance(gated, Gated)
        # The norms scale the gate's path too, whose own loss decodes by the same rows.
        _, moved = scaling.unfold_encoder(dictionary.W_enc, torch.zeros_like(gated.b_mag))
        self.b_mag.copy_((gated.b_mag + gated.r_mag.exp() * moved) * gains)
        self.r_mag.copy_(gated.r_mag)


@dataclass(frozen=True, kw_only=True)
class GatedConfig(PenalisedConfig):
    """Gated autoencoder with an L1 penalty on its gates (SAELens's `gated`)."""

    architecture = "gated"
    saved_as = Gated
    autoencoder = GatedSAE
