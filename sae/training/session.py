"""One dictionary in training with its files: checkpoints, figures, time spent."""

import time
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.base import read_json, require, say, write_json
from sae.core.fidelity import ReconstructionStatistics, density_histogram
from sae.dictionary import Dictionary
from sae.training.checkpoint import Checkpoints
from sae.training.loggers import Logger, Metrics
from sae.training.loop import StepReport
from sae.training.start import Start, make_trainer
from sae.training.task import Task

TIMING_FILE = "timing.json"
_ROWS_AT_ONCE = 2048


class Session:
    """A trainer, at its newest checkpoint if there is one, and what is kept of its work.

    Raises:
        UserError: if that checkpoint is of another training or damaged, or if it is gone and
            the dictionary is to be extended.
    """

    def __init__(self, task: Task, start: Start) -> None:
        config = self.config = task.config
        self.loggers: list[Logger] = []
        self.latest: Metrics = {}
        self._checkpoints = Checkpoints(config.state_path, config.checkpoint)
        found = self._checkpoints.newest()
        require(
            found is not None or not config.dictionary_path.exists(),
            f"extend=true: {config.state_path} holds no checkpoint of {config.dictionary_path} "
            f"to go on from; train to training_tokens={config.training_tokens} under another "
            "name=...",
        )
        self.identity = task.identity if found is None else task.continued(found)
        self.trainer = make_trainer(config, start)
        self._held_out = start.held_out
        self._timing = config.state_path / TIMING_FILE
        self._fired = torch.zeros_like(self.trainer.rows_since_fired)
        self._rows = 0
        self._seconds = 0.0
        self._saved_step = -1
        if found is not None:
            self._load(found.state)
            say(f"train: {config.id} goes on from step {self.step:,} of {config.n_steps:,}")

    @property
    def step(self) -> int:
        """Steps finished."""
        return self.trainer.step

    @property
    def over(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.trainer.n_steps

    @property
    def asks_to_be_saved(self) -> bool:
        """Whether this step's state is to be kept, whatever the time is, and is not yet."""
        due = self.over or self._checkpoints.due(self.step)
        return due and self._saved_step != self.step

    def _load(self, state: dict[str, Any]) -> None:
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
        trainer = self.trainer.state_dict()
        state = {"trainer": trainer, "fired": self._fired, "rows": self._rows}
        write_json(self._timing, {"seconds": self._seconds})
        self._checkpoints.save(self.step, self.identity, state)
        self._saved_step = self.step

    def update(self, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"]) -> None:
        """Take one step on scaled rows, with all that is due after it.

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
        """Close the loggers: no more figures come."""
        for logger in self.loggers:
            logger.close()
        self.loggers = []

    def dictionary(self) -> Dictionary:
        """Return the dictionary as it is now, for raw activations."""
        trainer = self.trainer
        return trainer.sae.dictionary(trainer.scaling, trainer.output_scaling)

    def _due(self, report: StepReport) -> Metrics:
        look = report.step % self.config.eval_interval == 0 or self.over
        if look:
            return report.metrics() | self._densities() | self._held_out_figures()
        return {} if report.step % self.config.log_every_steps else report.metrics()

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
        if self._held_out is None:
            return {}
        dictionary = self.dictionary()
        statistics = ReconstructionStatistics(dictionary.d_out, dictionary.d_sae)
        sides = (torch.split(side, _ROWS_AT_ONCE) for side in self._held_out)
        for rows in zip(*sides, strict=True):
            moved = [side.to(self.trainer.device).float() for side in rows]
            feature_acts = dictionary.encode(moved[0])
            x_hat = dictionary.reconstruct(moved[0], feature_acts)
            statistics.add(moved[-1], x_hat, feature_acts)
        figures = statistics.metrics()
        return {
            "reconstruction_quality/explained_variance": figures["explained_variance"],
            "reconstruction_quality/mse": figures["mse"],
            "sparsity/l0": figures["l0"],
        }
