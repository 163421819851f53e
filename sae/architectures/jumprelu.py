"""JumpReLU autoencoder: a latent is active above a threshold of its own (arXiv 2407.14435).

`f = z · 1[z > θ]` with `z = W_enc x + b_enc`. The threshold is a parameter itself (through a
logarithm it hardly learns under Adam). It gets its gradient from entries near it, by the
rectangle estimator of width ε: with `w = 1[|z − θ| < ε/2]`, `∂f/∂θ = −(θ/ε) w` and
`∂1[z > θ]/∂θ = −(1/ε) w`. So active entries and those in the window are all that a step needs
besides the encoder's product.

Penalties: `step` is `λ L0` (arXiv 2407.14435), `tanh` is `λ Σ tanh(c f)` (Anthropic, January
2025), `quadratic` is `λ (2/L0*) (L0 − L0*)²` around a target (Gemma Scope 2). Dead latents are
pulled up by `c_pre Σ relu(θ − z)` over them (Anthropic, January 2025). Latents that fire in
more than a tenth of a batch are pushed down by `c_f Σ_j relu(p_j − 0.1)`, p_j being the share
of rows where latent j fires; Gemma Scope 2 has a penalty to that end, the form is ours.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sae.architectures.base import (
    BIAS_LR_FACTOR,
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
from sae.architectures.penalised import Coefficient
from sae.base import require
from sae.core.scaling import InputScaling
from sae.core.select import Above
from sae.core.sparse import encode_on, reconstruct_on
from sae.dictionary import Activation, Dictionary, JumpReLU

# Above this share of rows a latent fires too often to mean one thing (Gemma Scope 2).
OFTEN = 0.1

PENALTIES = ("step", "tanh", "quadratic")


class JumpReLUSAE(TrainableSAE):
    """Thresholds start where the sample has the wanted L0; decoder norms are one."""

    unit_norm_decoder = True
    lr_factors: ClassVar[dict[str, float]] = {"b_enc": BIAS_LR_FACTOR, "threshold": 10.0}
    config: "JumpReLUConfig"

    def prepare(self, sample: Rows) -> None:
        config = self.config
        # A quadratic penalty has its target inside; the others reach theirs by their weight.
        moving = None if config.penalty == "quadratic" else config.target_l0
        self.coefficient = Coefficient(
            config.l0_coefficient, config.l0_warm_up_fraction, moving
        )
        pre_acts = sample[:1024] @ self.encoder().detach().t()
        self.threshold = nn.Parameter(
            torch.full_like(self.b_enc, max(0.0, level(pre_acts, self._first_l0)))
        )

    @property
    def _first_l0(self) -> float:
        return self.config.target_l0 or 50.0

    def activation(self, pre_acts: Latents) -> Latents:
        return torch.where(pre_acts > level(pre_acts, self._first_l0), pre_acts, 0)

    def step(self, x: Rows, y: Targets, progress: float, dead: Silent) -> TrainingStep:
        encoder, width = self.encoder(), self.config.bandwidth
        near = Above(self.threshold.detach() - width / 2)
        (support, found), candidates = self.select(x, encoder, near)
        pre_acts = encode_on(support, found, x, encoder, self.b_enc)
        thresholds = self.threshold.index_select(0, support.columns)
        values, gates = _Jump.apply(pre_acts, thresholds, width)  # type: ignore[no-untyped-call]
        main = reconstruct_on(support, values, self.W_dec, self.target(x, y))
        l0 = gates.sum() / len(x)
        coefficient = self.coefficient.at(progress)
        sparsity = coefficient * self._penalty(values, l0, len(x))
        fired = torch.zeros_like(support.column_ends[1:]).index_add_(
            0, support.columns, gates.detach().int()
        )
        self.coefficient.observe(float(l0.detach()), progress)
        losses: dict[str, Tensor | float] = {
            "losses/l0_loss": sparsity.detach(),
            "details/l0_coefficient": coefficient,
            "details/candidates": candidates,
        }
        loss = main.loss + sparsity
        if self.config.frequency_coefficient:
            counts = torch.zeros_like(self.b_enc).index_add(0, support.columns, gates)
            excess = torch.relu(counts / len(x) - OFTEN).sum()
            often = self.config.frequency_coefficient * excess
            losses["losses/frequency_loss"] = often.detach()
            loss = loss + often
        if self.config.pre_act_loss_coefficient and bool(dead.any()):
            idle = nn.functional.linear(x, encoder[dead], self.b_enc[dead])
            short = torch.relu(self.threshold[dead] - idle).sum() / len(x)
            pull = self.config.pre_act_loss_coefficient * short
            losses["losses/pre_act_loss"] = pull.detach()
            loss = loss + pull
        return TrainingStep(loss, main.mse[-1], losses, fired)

    def _penalty(self, values: Tensor, l0: Tensor, batch: int) -> Tensor:
        if self.config.penalty == "tanh":
            return torch.tanh(self.config.tanh_scale * values).sum() / batch
        if self.config.penalty == "quadratic":
            assert self.config.target_l0 is not None
            return (2 / self.config.target_l0) * (l0 - self.config.target_l0).square()
        return l0

    def after_update(self) -> None:
        super().after_update()
        self.threshold.data.clamp_(min=0)

    def trained_activation(self, gains: PerLatent, b_enc: PerLatent) -> Activation:
        return JumpReLU((self.threshold.detach() * gains).float())

    def take_activation(
        self, dictionary: Dictionary, gains: PerLatent, scaling: InputScaling
    ) -> None:
        assert isinstance(dictionary.activation, JumpReLU)
        # Below zero a threshold does what zero does.
        self.threshold.copy_(dictionary.activation.threshold.clamp_min(0) * gains)


@dataclass(frozen=True, kw_only=True)
class JumpReLUConfig(ArchitectureConfig):
    """JumpReLU autoencoder with a penalty on L0 (SAELens's `jumprelu`)."""

    architecture = "jumprelu"
    saved_as = JumpReLU
    autoencoder = JumpReLUSAE

    penalty: str = "quadratic"
    """Form of the penalty: `quadratic` around `target_l0`, or `step` or `tanh`, whose weight is
    changed until the target is reached."""
    l0_coefficient: float = 10.0
    """Weight of the penalty, for inputs that are scaled so that a coordinate has mean square
    one."""
    l0_warm_up_fraction: float = 0.1
    """Share of the training over which the weight rises linearly from zero."""
    target_l0: float | None = 50.0
    """L0 that the training is to reach. With null the weight of a `step` or `tanh` penalty
    stays as it is."""
    bandwidth: float = 0.1
    """Width of the window around a threshold in which pre-activations have an effect on the
    threshold."""
    tanh_scale: float = 4.0
    """Factor c of an activation f in the penalty `tanh(c f)` (Anthropic, January 2025)."""
    frequency_coefficient: float = 0.0
    """Weight of the penalty on latents that fire in more than a tenth of the rows."""
    pre_act_loss_coefficient: float = 3e-6
    """Weight of the loss that pulls dead latents up (Anthropic, January 2025)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.penalty in PENALTIES,
            f"sae.penalty={self.penalty} is unknown; choose one of {', '.join(PENALTIES)}",
        )
        self.check_not_negative("l0_coefficient", "1 to 10 are usual")
        self.check_not_negative("frequency_coefficient", "10 is a beginning")
        self.check_not_negative("pre_act_loss_coefficient", "3e-6 is usual")
        self.check_share("l0_warm_up_fraction")
        for name in ("bandwidth", "tanh_scale"):
            value = getattr(self, name)
            require(value > 0, f"sae.{name}={value} is impossible; give more than 0")
        require(
            self.target_l0 is not None or self.penalty != "quadratic",
            "sae.penalty=quadratic needs sae.target_l0, such as 50",
        )
        self.check_target_l0(self.target_l0)

    def idle_keys(self) -> dict[str, str | None]:
        """Return the scale of a penalty that this is not."""
        return {} if self.penalty == "tanh" else {"tanh_scale": "penalty=tanh"}

    @property
    def short_name(self) -> str:
        goal = (
            f"{self.penalty}-{self.l0_coefficient:g}"
            if self.target_l0 is None
            else f"l0-{self.target_l0:g}"
        )
        return f"{self.architecture}-{self.d_sae}-{goal}"


class _Jump(torch.autograd.Function):
    """`z · 1[z > θ]` and `1[z > θ]`, with the rectangle estimator for θ."""

    @staticmethod
    def forward(
        ctx: Any, pre_acts: Tensor, thresholds: Tensor, width: float
    ) -> tuple[Tensor, Tensor]:
        gates = (pre_acts > thresholds).to(pre_acts.dtype)
        ctx.save_for_backward(pre_acts, thresholds, gates)
        ctx.width = width
        return torch.relu(pre_acts) * gates, gates

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pre_acts, thresholds, gates = ctx.saved_tensors
        near = (pre_acts - thresholds).abs() < ctx.width / 2
        slope = grads[0] * thresholds + grads[1]
        return grads[0] * gates * (pre_acts > 0), slope * near / -ctx.width, None
