"""Where figures of a run go: `metrics.jsonl` always, wandb when asked for."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae.base import explained_failures, read_json_lines, require, write_text

# Wandb's own patience is a minute and a half.
_PATIENCE_SECONDS = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggerConfig:
    """Where the figures of a training go."""

    name: str = "jsonl"
    """Where to write figures: `jsonl` writes a file in the run, and `wandb` writes that file
    and sends the figures to wandb."""
    project: str = "sae-atlas"
    """Project on wandb."""
    group: str | None = None
    """Group on wandb. It keeps the dictionaries of a sweep together."""
    mode: str | None = None
    """Mode of wandb: online, offline or disabled. By default the variable WANDB_MODE
    decides."""

    def __post_init__(self) -> None:
        require(
            self.name in ("jsonl", "wandb"),
            f"logger.name={self.name} is unknown; choose jsonl or wandb",
        )
        require(
            self.mode in (None, "online", "offline", "disabled"),
            f"logger.mode={self.mode} is unknown; choose online, offline or disabled",
        )

    def idle_keys(self) -> dict[str, str | None]:
        """Return the keys that are for wandb, where it is not asked for."""
        names = ("project", "group", "mode")
        return {} if self.name == "wandb" else dict.fromkeys(names, "name=wandb")


Metrics = dict[str, Any]
"""Numbers by name, and histograms: `{"log10_edges": [...], "counts": [...]}`."""


def _line(metrics: Metrics) -> str:
    return json.dumps(metrics) + "\n"


def _step(line: Metrics) -> float:
    step = line.get("step")
    return step if isinstance(step, int) else math.inf


class JsonlLogger:
    """One JSON object a line: `{"step": 10, "losses/mse_loss": ..., ...}`.

    A resumed run starts by dropping the lines after its checkpoint, so no step comes twice.
    """

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        self._path = path
        with explained_failures(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = read_json_lines(path) if path.exists() else []
            kept = [_line(line) for line in lines if _step(line) <= resume_step]
            # Replaced as a whole, so that a kill in between loses no line.
            write_text(path, "".join(kept))
            self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Metrics) -> None:
        """Record the figures of a step; steps come in order."""
        with explained_failures(self._path):
            self._file.write(_line({"step": step, **metrics}))
            # A page may read it meanwhile, and a checkpoint must not be ahead of it.
            self._file.flush()

    def close(self) -> None:
        with explained_failures(self._path):
            self._file.close()


class WandbLogger:
    """A run of wandb, which goes on where the training does, and shows its `settings`.

    Wandb keeps its own files in `folder`.
    """

    def __init__(
        self, config: LoggerConfig, folder: Path, run_id: str, name: str, settings: Any
    ) -> None:
        import wandb

        self._wandb = wandb
        # Every dictionary of a sweep is a run of its own, open at the same time.
        self._run: Any = wandb.init(
            project=config.project,
            group=config.group,
            mode=config.mode,  # type: ignore[arg-type]
            dir=folder,
            id=run_id,
            name=name,
            config=settings,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(init_timeout=_PATIENCE_SECONDS),
        )

    def log(self, step: int, metrics: Metrics) -> None:
        shown = dict(metrics)
        for key, value in metrics.items():
            if isinstance(value, dict):
                histogram = np.array(value["counts"]), np.array(value["log10_edges"])
                shown[key] = self._wandb.Histogram(np_histogram=histogram)
        self._run.log(shown, step=step)

    def close(self) -> None:
        self._run.finish()


Logger = JsonlLogger | WandbLogger
