"""ReLU autoencoder with an L1 penalty weighted by decoder norms.

Loss: `‖x − x̂‖² + λ Σ_j f_j ‖W_dec,j‖` with `f = relu(W_enc x + b_enc)` (Anthropic, "Update
on how we train SAEs", April 2024). The decoder's norms are free.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae.architectures.base import ArchitectureConfig, TrainableSAE, TrainingStep
from sae.base.errors import require
from sae.core.losses import squared_error, weighted_l1, weighted_l1_on
from sae.core.scaling import InputScaling
from sae.core.sparse import decode_on, encode_on, support_of

# Above this share of active latents the dense products are the faster ones (two cores,
# d_in 576: the sparse step wins at every width from 2,304 up once L0 is below d_sae / 8).
SPARSE_BELOW = 0.125


@dataclass(frozen=True, kw_only=True)
class StandardConfig(ArchitectureConfig):
    """ReLU autoencoder with a decoder-norm-weighted L1 penalty (SAELens's `standard`)."""

    l1_coefficient: float = 4.0
    """Weight of the penalty, in units where each coordinate of `x` has mean square one."""
    l1_warm_up_fraction: float = 0.1
    """Share of the run over which the coefficient rises linearly from zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 <= self.l1_coefficient < math.inf,
            f"sae.l1_coefficient={self.l1_coefficient} is impossible; give 0 or more "
            "(2 to 10 are usual)",
        )
        require(
            0 <= self.l1_warm_up_fraction <= 1,
            f"sae.l1_warm_up_fraction={self.l1_warm_up_fraction} is impossible; "
            "give a share between 0 and 1",
        )

    @property
    def architecture(self) -> str:
        return "standard"

    @property
    def short_name(self) -> str:
        return f"standard-{self.d_sae}-l1-{self.l1_coefficient:g}"

    def build(
        self, sample: Float[Tensor, "rows d_in"], generator: torch.Generator
    ) -> "StandardSAE":
        return StandardSAE(self, sample, generator)


class StandardSAE(TrainableSAE):
    """Weights are kept latent by latent: row j of `W_enc_t` and of `W_dec` is latent j."""

    def __init__(
        self,
        config: StandardConfig,
        sample: Float[Tensor, "rows d_in"],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.config = config
        directions = initial_directions(config.d_sae, sample, generator)
        gain = matching_gain(sample, directions)
        self.W_enc_t = nn.Parameter(directions * gain)
        self.b_enc = nn.Parameter(sample.new_zeros(config.d_sae))
        self.W_dec = nn.Parameter(directions.clone())
        self.b_dec = nn.Parameter(sample.new_zeros(sample.shape[1]))
        # The last step's share of active latents decides how the next one is computed. A
        # buffer, because a resumed run has to take the same path to end in the same bits.
        self.active_share: Tensor
        self.register_buffer("active_share", torch.tensor(1.0, dtype=torch.float64))

    def coefficient(self, progress: float) -> float:
        """The penalty's weight after a linear warm-up."""
        warm_up = self.config.l1_warm_up_fraction
        return self.config.l1_coefficient * (min(1.0, progress / warm_up) if warm_up else 1.0)

    def step(self, x: Float[Tensor, "batch d_in"], progress: float) -> TrainingStep:
        sparse = float(self.active_share) < SPARSE_BELOW
        x_hat, penalty, fired = self._sparse(x) if sparse else self._dense(x)
        self.active_share.copy_(fired.sum() / (x.shape[0] * self.config.d_sae))
        mse = squared_error(x, x_hat)
        l1 = self.coefficient(progress) * penalty
        losses = {"losses/mse_loss": mse.detach(), "losses/l1_loss": l1.detach()}
        return TrainingStep(mse + l1, x_hat, losses, fired)

    def _dense(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        feature_acts = torch.relu(nn.functional.linear(x, self.W_enc_t, self.b_enc))
        x_hat = feature_acts @ self.W_dec + self.b_dec
        fired = (feature_acts.detach() > 0).sum(0)
        return x_hat, weighted_l1(feature_acts, self.W_dec), fired

    def _sparse(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            pre_acts = nn.functional.linear(x, self.W_enc_t, self.b_enc)
            active = pre_acts > 0
            support = support_of(active)
        values = encode_on(support, pre_acts[active], x, self.W_enc_t, self.b_enc)
        x_hat = decode_on(support, values, self.W_dec) + self.b_dec
        penalty = weighted_l1_on(values, support.columns, self.W_dec, len(x))
        return x_hat, penalty, support.counts()

    def weights(self, scaling: InputScaling) -> dict[str, Tensor]:
        w_enc, b_enc = scaling.fold_encoder(self.W_enc_t.detach().t(), self.b_enc.detach())
        w_dec, b_dec = scaling.fold_decoder(self.W_dec.detach(), self.b_dec.detach())
        return {"W_enc": w_enc.contiguous(), "b_enc": b_enc, "W_dec": w_dec, "b_dec": b_dec}


def initial_directions(
    d_sae: int, sample: Float[Tensor, "rows d_in"], generator: torch.Generator
) -> Float[Tensor, "d_sae d_in"]:
    """Unit directions halfway between random rows of the sample and random noise.

    Rows point where the data is, so latents live and the error falls sooner than from noise
    alone; the noise keeps frequent rows from giving the same direction twice.
    """
    rows = torch.randint(len(sample), (d_sae,), generator=generator)
    noise = torch.randn(d_sae, sample.shape[1], generator=generator, dtype=sample.dtype)
    unit = nn.functional.normalize
    mixed = unit(sample[rows], dim=1) + unit(noise, dim=1).to(sample.device)
    return unit(mixed, dim=1)


def matching_gain(
    sample: Float[Tensor, "rows d_in"], directions: Float[Tensor, "d_sae d_in"]
) -> float:
    """The encoder's scale that brings the first reconstruction closest to the rows.

    Tied weights add up what overlapping directions see; least squares over one factor undoes
    that (OpenAI's code rescales the encoder for the same reason).
    """
    x = sample[:1024]
    x_hat = torch.relu(x @ directions.t()) @ directions
    return float((x * x_hat).sum() / x_hat.square().sum().clamp_min(1e-12))
