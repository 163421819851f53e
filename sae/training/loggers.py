"""Where figures of a run go: `metrics.jsonl` always, wandb when asked for."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sae.base.errors import require
from sae.base.files import explained_failures, write_text
from sae.base.progress import say


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggerConfig:
    """Where the figures of training go."""

    name: str = "jsonl"
    """`jsonl` (a file beside the run, no account) or `wandb` (that file and wandb)."""
    project: str = "sae-atlas"
    """wandb project."""
    group: str | None = None
    """wandb group, to keep the runs of a sweep together."""
    mode: str | None = None
    """wandb mode: online, offline or disabled; by default wandb's own (WANDB_MODE)."""

    def __post_init__(self) -> None:
        require(
            self.name in ("jsonl", "wandb"),
            f"logger.name={self.name} is unknown; choose jsonl or wandb",
        )
        require(
            self.mode in (None, "online", "offline", "disabled"),
            f"logger.mode={self.mode} is unknown; choose online, offline or disabled",
        )


class Logger(Protocol):
    """Takes the figures of one step."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record `metrics` for `step`; steps come in order."""

    def flush(self) -> None:
        """Put everything logged so far where a killed process cannot lose it."""

    def close(self) -> None:
        """Flush and end."""


class JsonlLogger:
    """One JSON object a line: `{"step": 10, "losses/mse_loss": ..., ...}`.

    A resumed run starts by dropping the lines after its checkpoint, so no step comes twice.
    """

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        self._path = path
        with explained_failures(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = _lines_up_to(path, resume_step) if path.exists() else []
            # Replaced as a whole, so that a kill in between loses no line.
            write_text(path, "".join(kept))
            self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        with explained_failures(self._path):
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")

    def flush(self) -> None:
        with explained_failures(self._path):
            self._file.flush()

    def close(self) -> None:
        with explained_failures(self._path):
            self._file.close()


def _lines_up_to(path: Path, step: int) -> list[str]:
    # The last line may be half-written if the process was killed.
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    return [line for line in whole if json.loads(line)["step"] <= step]


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The figures that a `JsonlLogger` wrote, one dict a logged step."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class WandbLogger:
    """The same figures as a wandb run; a resumed run continues it."""

    def __init__(self, config: LoggerConfig, run_id: str, name: str, settings: Any) -> None:
        import wandb

        self._run: Any = wandb.init(
            project=config.project,
            group=config.group,
            mode=config.mode,  # type: ignore[arg-type]
            id=run_id,
            name=name,
            config=settings,
            resume="allow",
        )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def flush(self) -> None:
        """Wandb writes from a process of its own."""

    def close(self) -> None:
        self._run.finish()


def open_loggers(
    config: LoggerConfig, path: Path, *, name: str, run_id: str, step: int, settings: Any
) -> list[Logger]:
    """The loggers that `config` asks for; training goes on if wandb cannot be reached."""
    loggers: list[Logger] = [JsonlLogger(path, step)]
    if config.name == "wandb":
        try:
            loggers.append(WandbLogger(config, run_id, name, settings))
        except Exception as error:
            say(f"wandb could not be started ({error}); figures go to {path} only")
    return loggers
