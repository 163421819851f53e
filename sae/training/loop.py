"""The training loop, as a generator: it computes; whoever iterates logs, saves and stops."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae.architectures import TrainableSAE, TrainingStep
from sae.base.errors import UserError
from sae.core.scaling import InputScaling
from sae.training.optim import OptimConfig, learning_rate, make_optimizer


@dataclass(frozen=True, slots=True)
class StepReport:
    """One finished step. Tensors stay on the device until somebody asks for numbers."""

    step: int
    """Steps finished, this one included."""
    lr: float
    x: Tensor
    result: TrainingStep
    dead: Tensor
    """Latents that did not fire in the last `dead_window_rows` rows."""

    def metrics(self) -> dict[str, float]:
        """Figures under SAELens's names, from this step's batch.

        `metrics/explained_variance` is `1 − Σ‖x−x̂‖² / Σ‖x−x̄‖²` over the batch.

        Raises:
            UserError: if the loss is not finite.
        """
        loss = float(self.result.loss.detach())
        if not torch.isfinite(torch.tensor(loss)):
            raise UserError(
                f"the loss is {loss} at step {self.step}: training diverged; lower optim.lr "
                f"(now {self.lr:g}); the last checkpoint is kept"
            )
        x, x_hat = self.x, self.result.x_hat.detach()
        error = (x - x_hat).square().sum()
        variance = (x - x.mean(0)).square().sum()
        return {
            "losses/overall_loss": loss,
            **{name: float(value) for name, value in self.result.losses.items()},
            "metrics/explained_variance": float(1 - error / variance),
            "metrics/l0": float(self.result.fired.sum()) / len(x),
            "sparsity/dead_features": float(self.dead),
            "details/current_learning_rate": self.lr,
            "details/n_training_samples": float(self.step * len(x)),
        }


class Trainer:
    """An autoencoder with all that changes while it is trained."""

    def __init__(
        self, sae: TrainableSAE, scaling: InputScaling, optim: OptimConfig, *, d_sae: int
    ) -> None:
        self.sae = sae
        self.scaling = scaling
        self.config = optim
        self.optimizer = make_optimizer(optim, sae)
        device = next(sae.parameters()).device
        self.rows_since_fired = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-equal continuation needs, besides the data's position."""
        return {
            "sae": self.sae.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rows_since_fired": self.rows_since_fired,
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.sae.load_state_dict(state["sae"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rows_since_fired.copy_(state["rows_since_fired"])
        self.step = state["step"]

    def check_finite(self) -> None:
        """Refuse to keep weights that hold NaN or infinity.

        Raises:
            UserError: says which knob to turn.
        """
        if not all(bool(p.isfinite().all()) for p in self.sae.parameters()):
            raise UserError(
                f"the weights hold NaN or infinity at step {self.step}: training diverged; "
                f"lower optim.lr (now {self.config.lr:g}); the last checkpoint is kept"
            )

    def fit(
        self, batches: Iterator[Tensor], n_steps: int, dead_window_rows: int
    ) -> Iterator[StepReport]:
        """Train until `n_steps` steps are done, yielding after each.

        Args:
            batches: rows (batch, d_in) on the raw scale, starting at this trainer's step.

        Raises:
            UserError: if a batch holds NaN or infinity; the weights are left as they were.
        """
        device = self.rows_since_fired.device
        while self.step < n_steps:
            x = self.scaling(next(batches).to(device))
            # One number tells: any NaN or infinity survives the sum.
            if not bool(x.sum().isfinite()):
                raise UserError(
                    f"batch {self.step} holds NaN or infinite activations; it was not trained "
                    "on; verify the cache"
                )
            lr = learning_rate(self.config, self.step, n_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            result = self.sae.step(x, self.step / n_steps)
            self.optimizer.zero_grad()
            result.loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.rows_since_fired += len(x)
            self.rows_since_fired.masked_fill_(result.fired > 0, 0)
            self.step += 1
            dead = (self.rows_since_fired >= dead_window_rows).sum()
            yield StepReport(self.step, lr, x, result, dead)
