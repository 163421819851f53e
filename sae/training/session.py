"""One dictionary in training with its files: checkpoints, figures, time spent."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.base import read_json, write_json
from sae.core.fidelity import ReconstructionStatistics, density_histogram
from sae.dictionary import Dictionary
from sae.rows.shuffle import Rows
from sae.training.checkpoint import Checkpoints
from sae.training.loggers import Logger, Metrics
from sae.training.loop import StepReport, Trainer

TIMING_FILE = "timing.json"
_ROWS_AT_ONCE = 2048


@dataclass(frozen=True, slots=True)
class Watch:
    """What is looked at while training, and how often."""

    log_every: int
    """Steps between two lines of figures of one batch."""
    eval_every: int
    """Steps between two looks at densities and held-out rows."""
    held_out: Rows | None
    """Rows that are never trained on, raw, if there are any."""


class Session:
    """A trainer, and what is kept of its work.

    Args:
        identity: what decides the weights; a checkpoint of another one is none of ours.
    """

    def __init__(
        self,
        name: str,
        trainer: Trainer,
        folder: Path,
        identity: Mapping[str, object],
        *,
        checkpoints: Checkpoints,
        watch: Watch,
    ) -> None:
        self.name = name
        self.trainer = trainer
        self.identity = identity
        self.loggers: list[Logger] = []
        self.latest: Metrics = {}
        self._timing = folder / TIMING_FILE
        self._checkpoints = checkpoints
        self._watch = watch
        self._fired = torch.zeros_like(trainer.rows_since_fired)
        self._rows = 0
        self._seconds = 0.0
        self._saved_step = -1

    @property
    def step(self) -> int:
        """Steps finished."""
        return self.trainer.step

    @property
    def over(self) -> bool:
        """Whether all steps are done."""
        return self.trainer.step >= self.trainer.n_steps

    @property
    def asks_to_be_saved(self) -> bool:
        """Whether this step's state is to be kept, whatever the time is, and is not yet."""
        due = self.over or self._checkpoints.due(self.step)
        return due and self._saved_step != self.step

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint holds."""
        self.trainer.load_state_dict(state["trainer"])
        self._fired.copy_(state["fired"])
        self._rows = state["rows"]
        self._saved_step = self.trainer.step
        if self._timing.exists():
            self._seconds = read_json(self._timing)["seconds"]

    def save(self) -> None:
        """Write a checkpoint, unless the last one is of this very step.

        Raises:
            Diverged: if the weights are no numbers; the last checkpoint is as it was.
            UserError: if the disk is full.
        """
        if self._saved_step == self.step:
            return
        self.trainer.check_finite()
        state = {
            "trainer": self.trainer.state_dict(),
            "fired": self._fired,
            "rows": self._rows,
        }
        write_json(self._timing, {"seconds": self._seconds})
        self._checkpoints.save(self.step, self.identity, state)
        self._saved_step = self.step

    def update(self, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"]) -> None:
        """One step on scaled rows, with all that is due after it.

        Raises:
            Diverged: if a figure that is due is no number.
        """
        began = time.perf_counter()
        report = self.trainer.update(x, y)
        self._fired += report.result.fired
        self._rows += len(x)
        due = self._due(report)
        if due:
            self.latest = {**self.latest, **due}
            for logger in self.loggers:
                logger.log(report.step, due)
        self._seconds += time.perf_counter() - began

    def close(self) -> None:
        """No more figures come."""
        for logger in self.loggers:
            logger.close()
        self.loggers = []

    def dictionary(self) -> Dictionary:
        """Return the dictionary as it is now, for raw activations."""
        trainer = self.trainer
        return trainer.sae.dictionary(trainer.scaling, trainer.output_scaling)

    def _due(self, report: StepReport) -> Metrics:
        found: Metrics = {}
        look = report.step % self._watch.eval_every == 0 or self.over
        if look or report.step % self._watch.log_every == 0:
            found |= report.metrics()
        if look:
            found |= self._densities() | self._held_out_figures()
        return found

    def _densities(self) -> Metrics:
        """How often each latent fired since this was last asked, under SAELens's names."""
        density = self._fired.cpu().double() / self._rows
        self._fired.zero_()
        self._rows = 0
        return {
            "metrics/mean_log10_feature_sparsity": float((density + 1e-10).log10().mean()),
            "sparsity/below_1e-5": float((density < 1e-5).sum()),
            "sparsity/below_1e-6": float((density < 1e-6).sum()),
            "plots/feature_density_line_chart": density_histogram(density),
        }

    @torch.no_grad()
    def _held_out_figures(self) -> Metrics:
        """Explained variance and L0 of the dictionary as it would be saved now."""
        if self._watch.held_out is None:
            return {}
        dictionary = self.dictionary()
        statistics = ReconstructionStatistics(dictionary.d_out, dictionary.d_sae)
        sides = (torch.split(side, _ROWS_AT_ONCE) for side in self._watch.held_out)
        for rows in zip(*sides, strict=True):
            x, *rest = (side.to(self.trainer.device).float() for side in rows)
            feature_acts = dictionary.encode(x)
            x_hat = dictionary.reconstruct(x, feature_acts)
            statistics.add(rest[0] if rest else x, x_hat, feature_acts)
        figures = statistics.metrics()
        return {
            "reconstruction_quality/explained_variance": figures["explained_variance"],
            "reconstruction_quality/mse": figures["mse"],
            "sparsity/l0": figures["l0"],
        }
