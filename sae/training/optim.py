"""Adam and the learning rate over a run: linear warm-up, plateau, linear decay to zero."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

from sae.architectures import TrainableSAE
from sae.base import require
from sae.core import cpu_kernels

_EPS = 1e-8
# Steps times latents up to which a training counts as short, and what no rate falls below by
# itself: the lowest rate in use elsewhere.
_SHORT = 5e6
_LEAST_LR = 5e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Adam and its schedule."""

    lr: float | None = None
    """Peak learning rate. By default it depends on the architecture, and is lower for long
    trainings and wide dictionaries."""
    beta1: float = 0.9
    """Decay rate of Adam's mean of gradients."""
    beta2: float = 0.999
    """Decay rate of Adam's mean of squared gradients."""
    lr_warm_up_steps: int | None = None
    """Number of steps over which the learning rate rises linearly from zero, by default a
    twentieth of the training."""
    lr_decay_steps: int | None = None
    """Number of steps at the end over which the learning rate falls linearly to zero, by
    default a fifth of the training."""

    def __post_init__(self) -> None:
        require(
            self.lr is None or 0 < self.lr < math.inf,
            f"optim.lr={self.lr} is impossible; give more than 0, such as 3e-3",
        )
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(
                0 <= value < 1, f"optim.{name}={value} is impossible; give 0 or more, below 1"
            )
        for name in ("lr_warm_up_steps", "lr_decay_steps"):
            value = getattr(self, name)
            require(
                value is None or value >= 0, f"optim.{name}={value} is negative; give 0 or more"
            )

    def ends(self, n_steps: int) -> tuple[int, int]:
        """Return over how many steps of a run the rate rises, and over how many it falls."""
        warm_up, decay = self.lr_warm_up_steps, self.lr_decay_steps
        return (
            n_steps // 20 if warm_up is None else warm_up,
            n_steps // 5 if decay is None else decay,
        )

    def check_fits(self, n_steps: int) -> None:
        """Refuse a schedule that is longer than a run, whose peak is never reached."""
        warm_up, decay = self.ends(n_steps)
        require(
            warm_up + decay <= n_steps,
            f"the learning rate would rise over {warm_up:,} steps and fall over {decay:,}, "
            f"but the training has {n_steps:,}, so it would never reach its peak; give "
            "smaller optim.lr_warm_up_steps and optim.lr_decay_steps, or more "
            "training_tokens",
        )


def usual_lr(short: float, n_steps: int, d_sae: int) -> float:
    """Return the peak learning rate of a training for which none is given.

    `short · min(1, √(5e6 / (n_steps · d_sae)))`, and at least 5e-5. The best rates of TopK were
    `3.9 / √(n_steps · d_sae)`, within a third or so, for products from 2e5 to 8e6: on a world
    whose features are known, and on SmolLM2's activations (docs/log.md, 2026-12-01; OpenAI's
    exponent of the width is the same, arXiv 2406.04093). The rate starts to fall later than
    that, as up to there a rate above the best costs little, and falls as fast. Beyond 8e6 it is
    extrapolated; at SynthSAEBench's 195,000 steps of 4,096 latents it is 2.4e-4, and they
    take 3e-4.

    Args:
        short: the rate of short trainings.
    """
    return max(_LEAST_LR, short * min(1.0, math.sqrt(_SHORT / (n_steps * d_sae))))


def schedule(config: OptimConfig, step: int, n_steps: int) -> float:
    """Return the share of the peak rate at step `step` (from 0) of a run of `n_steps`."""
    warm_up, decay = config.ends(n_steps)
    rising = (step + 1) / warm_up if warm_up else 1.0
    falling = (n_steps - step) / decay if decay else 1.0
    return min(1.0, rising, falling)


class UnitRowAdam(torch.optim.Optimizer):
    """Adam for matrices whose rows have norm one and keep it.

    Each row's gradient loses its component along the row before the moments see it, and the
    row is normalised after the update: one pass over memory for all of it.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float]
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "lr_factor": 1.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; `closure` is not used."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    zeros = {
                        name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")
                    }
                    state.update(step=torch.tensor(0.0), **zeros)
                state["step"] += 1
                kernels: ModuleType = cpu_kernels
                if weight.is_cuda:
                    from sae.core import triton_kernels

                    kernels = triton_kernels
                kernels.adam_unit_rows_(
                    weight.detach(),
                    weight.grad.contiguous(),
                    state["exp_avg"],
                    state["exp_avg_sq"],
                    step=int(state["step"]),
                    lr=group["lr"],
                    betas=group["betas"],
                    eps=_EPS,
                )


def make_optimizers(
    config: OptimConfig, sae: TrainableSAE, lr: float
) -> list[torch.optim.Optimizer]:
    """Adam in one fused kernel a parameter; the decoder's keeps norms where they are fixed."""
    betas = (config.beta1, config.beta2)
    unit = [sae.W_dec] if sae.unit_norm_decoder else []
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in sae.named_parameters():
        if not any(parameter is q for q in unit):
            groups.setdefault(sae.lr_factors.get(name, 1.0), []).append(parameter)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Adam(
            [{"params": members, "lr_factor": factor} for factor, members in groups.items()],
            lr=lr,
            betas=betas,
            eps=_EPS,
            fused=True,
        )
    ]
    if unit:
        optimizers.append(UnitRowAdam(unit, lr, betas))
    return optimizers
