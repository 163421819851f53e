"""Adam and the learning rate over a run: linear warm-up, plateau, linear decay to zero."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from sae.base.errors import require


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Adam and its schedule."""

    lr: float = 3e-3
    """Peak learning rate."""
    beta1: float = 0.9
    """Decay of Adam's mean of gradients."""
    beta2: float = 0.999
    """Decay of Adam's mean of squared gradients."""
    lr_warm_up_steps: int | None = None
    """Steps of linear warm-up; by default a twentieth of the run."""
    lr_decay_steps: int | None = None
    """Steps of linear decay to zero at the end; by default a fifth of the run."""

    def __post_init__(self) -> None:
        require(
            0 < self.lr < math.inf,
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


def learning_rate(config: OptimConfig, step: int, n_steps: int) -> float:
    """The rate of step `step` (from 0) of a run of `n_steps`."""
    warm_up = n_steps // 20 if config.lr_warm_up_steps is None else config.lr_warm_up_steps
    decay = n_steps // 5 if config.lr_decay_steps is None else config.lr_decay_steps
    rising = (step + 1) / warm_up if warm_up else 1.0
    falling = (n_steps - step) / decay if decay else 1.0
    return config.lr * min(1.0, rising, falling)


def make_optimizer(config: OptimConfig, module: nn.Module) -> torch.optim.Adam:
    """Adam in one fused kernel a parameter."""
    return torch.optim.Adam(
        module.parameters(), lr=config.lr, betas=(config.beta1, config.beta2), fused=True
    )
