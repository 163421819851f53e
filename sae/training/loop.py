"""One autoencoder in training: what changes, and what one batch does to it."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.architectures import TrainableSAE, TrainingStep
from sae.base import UserError
from sae.core.scaling import InputScaling
from sae.rows.shuffle import Rows
from sae.training.optim import OptimConfig, make_optimizers, schedule


class Diverged(UserError):
    """A loss or weights that are no numbers any more; other trainings are not concerned."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """One finished step. Tensors stay on the device until somebody asks for numbers."""

    step: int
    """Steps finished, this one included."""
    lr: float
    y: Tensor
    """The scaled rows that were to be reconstructed."""
    result: TrainingStep
    dead: Tensor
    """Latents that did not fire in the last `dead_window_rows` rows."""

    def metrics(self) -> dict[str, float]:
        """Figures under SAELens's names, from this step's batch.

        `metrics/explained_variance` is `1 − Σ‖y−ŷ‖² / Σ‖y−ȳ‖²` over the batch.

        Raises:
            Diverged: if the loss is not finite.
        """
        loss = float(self.result.loss.detach())
        if not torch.isfinite(torch.tensor(loss)):
            raise Diverged(
                f"the loss is {loss} at step {self.step}: training diverged; lower optim.lr "
                f"(now {self.lr:g}); what was saved before is kept"
            )
        mse = float(self.result.mse)
        variance = float((self.y - self.y.mean(0)).square().sum(1).mean())
        return {
            "losses/overall_loss": loss,
            "losses/mse_loss": mse,
            **{name: float(value) for name, value in self.result.losses.items()},
            "metrics/explained_variance": 1 - mse / variance if variance else 0.0,
            "metrics/l0": float(self.result.fired.sum()) / len(self.y),
            "sparsity/dead_features": float(self.dead.sum()),
            "details/current_learning_rate": self.lr,
            "details/n_training_samples": float(self.step * len(self.y)),
        }


class Trainer:
    """An autoencoder with all that changes while it is trained.

    Args:
        lr: peak learning rate.
        n_steps: of the whole run, which schedules are shares of.
        dead_window_rows: a latent is dead when silent over so many rows.
        output_scaling: of the rows that a transcoder predicts; the input's by default.
    """

    def __init__(
        self,
        sae: TrainableSAE,
        scaling: InputScaling,
        optim: OptimConfig,
        *,
        lr: float,
        n_steps: int,
        dead_window_rows: int,
        output_scaling: InputScaling | None = None,
    ) -> None:
        self.sae = sae
        self.scaling = scaling
        self.output_scaling = output_scaling or scaling
        self.config = optim
        self.lr = lr
        self.n_steps = n_steps
        self.dead_window_rows = dead_window_rows
        self.optimizers = make_optimizers(optim, sae, lr)
        self.device = next(sae.parameters()).device
        self.rows_since_fired = torch.zeros(sae.d_sae, dtype=torch.int64, device=self.device)
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-equal continuation needs, besides the data's position."""
        return {
            "sae": self.sae.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rows_since_fired": self.rows_since_fired,
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.sae.load_state_dict(state["sae"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.rows_since_fired.copy_(state["rows_since_fired"])
        self.step = state["step"]

    def check_finite(self) -> None:
        """Refuse to keep weights that hold NaN or infinity.

        Raises:
            Diverged: says which knob to turn.
        """
        if not all(bool(p.isfinite().all()) for p in self.sae.parameters()):
            raise Diverged(
                f"the weights hold NaN or infinity at step {self.step}: training diverged; "
                f"lower optim.lr (now {self.lr:g}); what was saved before is kept"
            )

    def scaled(
        self, rows: Rows
    ) -> tuple[Float[Tensor, "batch d_in"], Float[Tensor, "batch d_out"]]:
        """A batch as `update` takes it: what to read and what to reconstruct.

        Raises:
            UserError: if it holds NaN or infinity.
        """
        for side in rows:
            # One number tells: any NaN or infinity survives the sum. Rows on a GPU are not
            # asked, because training would wait for the answer; there the loss tells.
            if not side.is_cuda and not bool(side.float().sum().isfinite()):
                raise UserError(
                    f"batch {self.step} holds NaN or infinite activations; it was not trained "
                    "on; verify the cache"
                )
        x = self.scaling(rows[0].to(self.device, non_blocking=True))
        if len(rows) == 1:
            return x, x
        return x, self.output_scaling(rows[1].to(self.device, non_blocking=True))

    def update(
        self, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"]
    ) -> StepReport:
        """Take one step on scaled rows `x`, to reconstruct `y`."""
        lr = self.lr * schedule(self.config, self.step, self.n_steps)
        dead = self.rows_since_fired >= self.dead_window_rows
        result = self.sae.step(x, y, self.step / self.n_steps, dead)
        result.loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_factor"]
            optimizer.step()
            # Gradients are not kept: other dictionaries of a sweep use the memory.
            optimizer.zero_grad()
        self.sae.after_update()
        self.rows_since_fired += len(x)
        self.rows_since_fired.masked_fill_(result.fired > 0, 0)
        self.step += 1
        dead = self.rows_since_fired >= self.dead_window_rows
        return StepReport(self.step, lr, y, result, dead)
