"""Dictionaries fitted side by side to the rows of one source, each kept in its run."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from sae.base import UserError, digest, plain, progress, read_object, require, say, write_json
from sae.base.interrupts import deferred_interrupts
from sae.core import Vectors
from sae.core.fidelity import ReconstructionStatistics, density_histogram
from sae.dictionary import Dictionary, add_reconstruction, save_dictionary
from sae.rows.source import RowSource
from sae.run import make_together
from sae.training.checkpoint import Checkpoint, Checkpoints
from sae.training.loggers import JsonlLogger, Logger, Metrics, WandbLogger
from sae.training.loop import Diverged, Start, make_trainer
from sae.training.task import Task

TIMING_FILE = "timing.json"
_ROWS_AT_ONCE = 2048
# Saving takes at most this share of the time.
_MOST_SAVING = 0.02
_SHOWN = {
    "loss": ("losses/overall_loss", ".1f"),
    "l0": ("metrics/l0", ".1f"),
    "ev": ("metrics/explained_variance", ".3f"),
    "dead": ("sparsity/dead_features", ".0f"),
}


class Session:
    """One dictionary in training, from its newest checkpoint on, with its files."""

    def __init__(self, task: Task, start: Start) -> None:
        config = self.config = task.config
        self.loggers: list[Logger] = []
        self.latest: Metrics = {}
        self._checkpoints = Checkpoints(config.state_path, config.checkpoint)
        found = self._checkpoints.newest()
        require(
            found is not None or not config.dictionary_path.exists(),
            f"{config.state_path} contains no checkpoint of {config.dictionary_path} from "
            f"which to continue; train to training_tokens={config.training_tokens} under "
            "another name=..., or remove that dictionary to train it anew",
        )
        self.identity = task.identity if found is None else task.continued(found)
        self.trainer = make_trainer(config, start)
        self._held_out = start.held_out
        self._timing = config.state_path / TIMING_FILE
        self._fired = torch.zeros_like(self.trainer.rows_since_fired)
        self._rows, self._seconds, self._saved_step = 0, 0.0, -1
        if found is not None:
            self._take(found)
            if self._timing.exists():
                spent = read_object(self._timing, "remove it; only the time is forgotten")
                self._seconds = spent.get("seconds", float)
            say(f"train: {config.id} continues from step {self.step:,} of {config.n_steps:,}")

    def _take(self, found: Checkpoint) -> None:
        """Go on from a checkpoint; one that holds something else is refused."""
        try:
            self.trainer.load_state_dict(found.state["trainer"])
            self._fired.copy_(found.state["fired"])
            self._rows, self._saved_step = found.state["rows"], self.step
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise UserError(
                f"{found.path} does not hold the state of this training ({first}); remove "
                "it to continue from the checkpoint before, or from the beginning"
            ) from error

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

    def save(self) -> None:
        """Write a checkpoint of finite weights, unless the last one is of this very step."""
        if self._saved_step == self.step:
            return
        self.trainer.check_finite()
        trainer = self.trainer.state_dict()
        state = {"trainer": trainer, "fired": self._fired, "rows": self._rows}
        # Which product is fastest changes the time and nothing else.
        matmul = self.trainer.sae.matmul
        write_json(self._timing, {"seconds": self._seconds, "matmul": matmul})
        self._checkpoints.save(self.step, self.identity, state)
        self._saved_step = self.step

    def update(self, x: Vectors, y: Vectors) -> None:
        """Take one step on scaled rows, with all that is due after it."""
        began = time.perf_counter()
        report = self.trainer.update(x, y)
        self._fired += report.result.fired
        self._rows += len(x)
        due: Metrics = {}
        if report.step % self.config.eval_interval == 0 or self.over:
            due = report.metrics() | self._densities() | self._held_out_figures()
        elif report.step % self.config.log_every_steps == 0:
            due = report.metrics()
        if due:
            self.latest = {**self.latest, **due}
            for logger in self.loggers:
                logger.log(report.step, due)
        self._seconds += time.perf_counter() - began

    def dictionary(self) -> Dictionary:
        """Return the dictionary as it is now, for raw activations."""
        trainer = self.trainer
        return trainer.sae.dictionary(trainer.scaling, trainer.output_scaling)

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
        dictionary = self.dictionary().to(self.trainer.device)
        statistics = ReconstructionStatistics(dictionary.d_out, dictionary.d_sae)
        sides = (torch.split(side, _ROWS_AT_ONCE) for side in self._held_out)
        for rows in zip(*sides, strict=True):
            moved = [side.to(self.trainer.device).float() for side in rows]
            add_reconstruction(statistics, dictionary, moved[0], moved[-1])
        figures = statistics.metrics()
        names = {
            "explained_variance": "reconstruction_quality/explained_variance",
            "mse": "reconstruction_quality/mse",
            "l0": "sparsity/l0",
        }
        return {names[key]: figures[key] for key in names if key in figures}


def train_together(tasks: Sequence[Task], source: RowSource) -> list[Task]:
    """Train dictionaries from the batches of one source, and return those that were not there.

    Raises:
        Diverged: if one diverged; the others are finished first.
    """
    return make_together(tasks, lambda left: _train(left, source), command="train")


def _train(tasks: Sequence[Task], source: RowSource) -> None:
    start = Start.of(source.sample(), source.held_out(tasks[0].config.n_eval_rows))
    with ExitStack() as stack:
        sessions = [Session(task, start) for task in tasks]
        found = dict.fromkeys(session.trainer.sae.matmul for session in sessions)
        say(f"train: active latents are found with products in {' and '.join(found)}")
        _open_loggers(sessions, stack)
        diverged = _side_by_side(sessions, source)
        for task, session in zip(tasks, sessions, strict=True):
            if session not in diverged:
                trained = session.dictionary().placed(*source.places)
                record = task.record(source, session.identity)
                save_dictionary(replace(trained, record=record), task.config.dictionary_path)
                say(f"train: {task.place} is written")
    if diverged:
        said = (f"{session.config.id}: {error}" for session, error in diverged.items())
        raise Diverged("; ".join(said))


def _open_loggers(sessions: Sequence[Session], stack: ExitStack) -> None:
    """Figures go to files, and to wandb if it is asked for; training goes on if it fails."""
    with_wandb = True
    for session in sessions:
        if session.over:
            continue
        config = session.config
        path = config.state_path / "metrics.jsonl"
        session.loggers = [JsonlLogger(path, session.step)]
        if with_wandb and config.logger.name == "wandb":
            run_id = f"{config.id}-{digest(session.identity)}"
            about = Path(config.run), run_id, config.id, plain(config)
            try:
                session.loggers.append(WandbLogger(config.logger, *about))
            except Exception as error:
                # For the others it is not tried again: it may take its time to fail.
                with_wandb = False
                say(f"wandb could not be started ({error}); figures are only written to {path}")
        for logger in session.loggers:
            stack.callback(logger.close)


def _side_by_side(sessions: Sequence[Session], source: RowSource) -> dict[Session, Diverged]:
    """Take every session to its last step, and return those that diverged, and how.

    Sessions may be at different steps, as after a kill between two of their checkpoints: the
    stream begins where the first of them is, and each waits for its own next batch. All have
    one size of batches, and are saved together, also before Ctrl-C, SIGTERM or a closed
    terminal ends them.
    """
    running = _Running(sessions, source)
    if not running.sessions:
        return running.diverged
    one, n = running.sessions[0], len(running.sessions)
    first = min(session.step for session in running.sessions)
    last = max(session.trainer.n_steps for session in running.sessions)
    label = one.config.id if n == 1 else f"{n} dictionaries"
    size = one.config.train_batch_size_tokens
    with (
        progress(last * size, label, "tok", first * size) as bar,
        closing(source.batches(first)) as batches,
    ):
        # The first batch may take minutes, and nothing is there to be saved meanwhile.
        begun = chain([next(batches)], batches)
        with deferred_interrupts() as interrupts:
            for step, rows in enumerate(begun, start=first):
                running.update(step, *one.trainer.scaled(rows))
                bar.update(size)
                bar.set_postfix(running.summary(), refresh=False)
                if interrupts.asked is not None or running.to_be_saved:
                    running.save(step + 1)
                    if interrupts.asked is not None:
                        raise interrupts.asked
                running.sessions = [s for s in running.sessions if not s.over]
                if not running.sessions:
                    break
    return running.diverged


class _Running:
    """The sessions that are not over yet, and when they were saved."""

    def __init__(self, sessions: Sequence[Session], source: RowSource) -> None:
        self.sessions = [session for session in sessions if not session.over]
        self.diverged: dict[Session, Diverged] = {}
        self._source = source
        self._pause = self._every_seconds = sessions[0].config.checkpoint.every_seconds
        self._saved_at = time.perf_counter()

    def update(self, step: int, x: Tensor, y: Tensor) -> None:
        for session in tuple(self.sessions):
            if session.step == step:
                with self._dropped_if_diverged(session):
                    session.update(x, y)

    @property
    def to_be_saved(self) -> bool:
        waited = time.perf_counter() - self._saved_at
        return waited > self._pause or any(s.asks_to_be_saved for s in self.sessions)

    def save(self, n_batches: int) -> None:
        began = time.perf_counter()
        # Sessions could not go on from where the source cannot.
        self._source.save(n_batches)
        for session in tuple(self.sessions):
            with self._dropped_if_diverged(session):
                session.save()
        self._source.forget()
        self._saved_at = time.perf_counter()
        self._pause = max(self._every_seconds, (self._saved_at - began) / _MOST_SAVING)

    @contextmanager
    def _dropped_if_diverged(self, session: Session) -> Iterator[None]:
        try:
            yield
        except Diverged as error:
            self.diverged[session] = error
            self.sessions.remove(session)
            if self.sessions:
                say(f"train: {session.config.id}: {error}")

    def summary(self) -> dict[str, str]:
        """Return the latest figures, as a range where there are several dictionaries."""
        found = [session.latest for session in self.sessions if session.latest]
        shown = {}
        for short, (name, form) in _SHOWN.items():
            values = [figures[name] for figures in found]
            ends = [format(end(values), form) for end in (min, max) if values]
            shown[short] = "–".join(dict.fromkeys(ends))
        return shown
