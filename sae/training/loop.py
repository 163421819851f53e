"""One autoencoder in training: what it begins with, and what one batch does to it."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from sae.architectures import TrainableSAE, TrainingStep
from sae.base import UserError, require
from sae.core import Vectors
from sae.core.scaling import InputScaling
from sae.core.screen import fastest, matmuls_here
from sae.dictionary import load_dictionary
from sae.models import resolve_device
from sae.rows.shuffle import Rows
from sae.training.config import TrainConfig
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
        """Return figures of this step's batch under SAELens's names, if its loss is finite."""
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

    `lr` is the peak learning rate, and `n_steps` are those of the whole run. A latent is dead
    when it was silent over `dead_window_rows` rows.
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
        self.sae, self.scaling, self.output_scaling = sae, scaling, output_scaling or scaling
        self.config, self.lr, self.n_steps = optim, lr, n_steps
        self.dead_window_rows = dead_window_rows
        self.optimizers = make_optimizers(optim, sae, lr)
        self.device = next(sae.parameters()).device
        self.rows_since_fired = torch.zeros(sae.d_sae, dtype=torch.int64, device=self.device)
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        """Return all that a bit-equal continuation needs, besides the data's position."""
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
        """Refuse to keep weights that hold NaN or infinity, by `Diverged`."""
        if not all(bool(p.isfinite().all()) for p in self.sae.parameters()):
            raise Diverged(
                f"the weights hold NaN or infinity at step {self.step}: training diverged; "
                f"lower optim.lr (now {self.lr:g}); what was saved before is kept"
            )

    def scaled(self, rows: Rows) -> tuple[Vectors, Vectors]:
        """Return a batch of numbers as `update` takes it: to read and to reconstruct."""
        x = self.scaling(rows[0].to(self.device, non_blocking=True))
        self._check_size(rows[0], x)
        if len(rows) == 1:
            return x, x
        y = self.output_scaling(rows[1].to(self.device, non_blocking=True))
        self._check_size(rows[1], y)
        return x, y

    def _check_size(self, rows: Vectors, scaled: Vectors) -> None:
        """Refuse rows that are no numbers, or beyond what squares in float32 can say.

        Rows on a GPU are not asked, because training would wait for the answer; there the loss
        tells.
        """
        if rows.is_cuda or bool(torch.linalg.vector_norm(scaled).isfinite()):
            return
        where = f"batch {self.step} holds"
        require(
            bool(rows.isfinite().all()),
            f"{where} NaN or infinite activations, which were not trained on; check the "
            "cache with sae cache verify",
        )
        most = float(scaled.abs().max())
        raise UserError(
            f"{where} activations {most:.0e} times the usual size, whose squares do not fit "
            "into float32, and which were not trained on; max_norm_multiple leaves out "
            "such rows of a cache or a model, but in rows of your own you have to leave "
            "them out yourself"
        )

    def update(self, x: Vectors, y: Vectors) -> StepReport:
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


@dataclass(frozen=True, slots=True)
class Start:
    """What all dictionaries of the same rows begin with."""

    scalings: list[InputScaling]
    """How the rows to read are scaled, and those to predict where they are others."""
    sample: Rows
    """Scaled."""
    held_out: Rows | None
    """Raw."""

    @classmethod
    def of(cls, sample: Rows, held_out: Rows | None) -> Self:
        """Return what follows from raw rows."""
        raw = [side.float() for side in sample]
        scalings = list(map(InputScaling.of, raw))
        scaled = (scaling(side) for scaling, side in zip(scalings, raw, strict=True))
        return cls(scalings, tuple(scaled), held_out)


def _matmul(config: TrainConfig, scaled: Rows, device: torch.device) -> str:
    """Return the product that finds active latents, which this machine has to have."""
    dtype = scaled[0].dtype
    here = matmuls_here(device, dtype)
    require(
        config.matmul in ("auto", *here),
        f"matmul={config.matmul} is not available on this {device.type}; choose auto or one "
        f"of {', '.join(here)}",
    )
    if config.matmul != "auto":
        return config.matmul
    rows = config.train_batch_size_tokens
    return fastest(scaled[0].shape[1], config.sae.d_sae, rows, dtype, device)


def make_trainer(config: TrainConfig, start: Start) -> Trainer:
    """Return a trainer at its first step, if widths and weights to begin with fit."""
    device = resolve_device(config.device)
    scalings, scaled = start.scalings, start.sample
    require(
        not config.sae.aligned or scaled[0].shape[1] == scaled[-1].shape[1],
        f"sae.aligned=True needs two hooks of equal width; {config.hook_name} has "
        f"{scaled[0].shape[1]}, {config.hook_name_out} {scaled[-1].shape[1]}",
    )
    generator = torch.Generator().manual_seed(config.seed)
    sae = config.sae.build(scaled[0], generator, *scaled[1:])
    if config.init_from is not None:
        found = load_dictionary(config.init_from)
        kind, wanted = (
            "a transcoder" if is_one else "an autoencoder"
            for is_one in (found.is_transcoder, config.hook_name_out is not None)
        )
        require(
            kind == wanted,
            f"init_from={config.init_from} is {kind}, but {wanted} is to be trained; "
            "hook_name_out=... makes a transcoder",
        )
        sae.begin_with(found, scalings[0], scalings[-1])
    sae.matmul = _matmul(config, scaled, device)
    on_device = [InputScaling(s.mean.to(device), s.scale) for s in scalings]
    return Trainer(
        sae.to(device),
        on_device[0],
        config.optim,
        lr=config.lr,
        n_steps=config.n_steps,
        dead_window_rows=int(config.dead_feature_window * config.training_tokens),
        output_scaling=on_device[-1],
    )
