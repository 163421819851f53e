"""What tracking, evaluation and checkpoints cost a default training, beside its bare loop.

The same training from a cache, everything at its defaults but its width and length: as
`sae train` runs it, with log lines, looks at held-out rows and checkpoints; and its steps
alone on the same batches, which are read beforehand. They take turns. Clocks around the parts
of the first say where its time goes; what they take themselves is counted with it.
"""

import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from itertools import islice
from typing import Any

import sae
from benchmarks.common import HOOK, RUN, PassedOn, write_results
from benchmarks.reading import N_TOKENS
from sae.rows.shuffle import Rows
from sae.rows.source import RowSource
from sae.training.config import TrainConfig
from sae.training.loggers import JsonlLogger, LoggerConfig, WandbLogger
from sae.training.loop import Start, StepReport, make_trainer
from sae.training.task import open_source, tasks_of
from sae.training.train import Session, train_together

FOLDER = RUN / "tracking"
D_SAE, TRAINING_TOKENS = 4_608, 1_000_000
TURNS = 2
LOGGERS = {
    "jsonl (default)": LoggerConfig(),
    "wandb, offline": LoggerConfig(name="wandb", mode="offline"),
}
PARTS = ("figures of a step", "writing them", "evaluation", "checkpoints", "waiting for rows")
# Methods of a training, and what they are for.
_CLOCKED: dict[tuple[type, str], str] = {
    (StepReport, "metrics"): "figures of a step",
    (JsonlLogger, "log"): "writing them",
    (WandbLogger, "log"): "writing them",
    (Session, "_densities"): "evaluation",
    (Session, "_held_out_figures"): "evaluation",
    (Session, "save"): "checkpoints",
}


def main() -> None:
    """Seconds of both, and shares of what is beside the steps."""
    sae.harvest(run=f"{RUN}/reading", hook_names=[HOOK], n_tokens=N_TOKENS)
    config = TrainConfig(
        run=str(FOLDER),
        cache=str(RUN / "reading" / "cache.zarr"),
        sae=sae.StandardConfig(d_sae=D_SAE),
        training_tokens=TRAINING_TOKENS,
    )
    source = open_source(config)
    # Kept open: its threads decide how OpenMP's wait, so both loops have to have such ones.
    reader = source.batches(0)
    batches = list(islice(reader, config.n_steps))
    bare: list[float] = []
    full: dict[str, list[_Spent]] = {name: [] for name in LOGGERS}
    for turn in range(TURNS):
        bare.append(_bare(config, source, batches))
        print(f"turn {turn + 1}: bare loop {bare[-1]:.1f} s", flush=True)
        for name, logger in LOGGERS.items():
            # The second logger once: its own cost is in its own clock.
            if turn == 0 or name == next(iter(LOGGERS)):
                full[name].append(_full(replace(config, logger=logger), source))
                print(f"turn {turn + 1}: {name} {full[name][-1]}", flush=True)
    rows = [_row(name, spent, statistics.median(bare)) for name, spent in full.items()]
    reader.close()
    title = f"{config.n_steps} steps of L1, d_sae {D_SAE:,}, at the defaults of `sae train`"
    write_results("tracking", title, rows)
    shutil.rmtree(FOLDER)


@dataclass
class _Spent:
    """Seconds of one training's loop."""

    seconds: float
    """From the first batch that is asked for to the end of the last step's work."""
    parts: dict[str, float]


def _row(name: str, spent: list[_Spent], bare: float) -> dict[str, object]:
    seconds = statistics.median(one.seconds for one in spent)
    parts = {
        part: statistics.median(one.parts.get(part, 0.0) for one in spent) for part in PARTS
    }
    steps = [one.seconds - sum(one.parts.values()) for one in spent]
    return {
        "logger": name,
        "bare loop (s)": round(bare, 1),
        "training (s)": round(seconds, 1),
        "over the bare loop": f"{seconds / bare - 1:.1%}",
        **{part: f"{s / seconds:.2%}" for part, s in parts.items()},
        "all of these": f"{sum(parts.values()) / seconds:.2%}",
        "steps within (s)": round(statistics.median(steps), 1),
    }


def _bare(config: TrainConfig, source: RowSource, batches: list[Rows]) -> float:
    """Return the steps and nothing else."""
    trainer = make_trainer(config, Start.of(source.sample(), None))
    began = time.perf_counter()
    for rows in batches:
        trainer.update(*trainer.scaled(rows))
    return time.perf_counter() - began


def _full(config: TrainConfig, source: RowSource) -> _Spent:
    shutil.rmtree(FOLDER, ignore_errors=True)
    clock = _Clock(source)
    with _clocked(clock.parts):
        train_together(tasks_of([config], source), clock)
    return _Spent(clock.ended - clock.began, dict(clock.parts))


class _Clock(PassedOn):
    """A source that notes when its batches begin and end, and how long they are waited for."""

    def __init__(self, source: RowSource) -> None:
        super().__init__(source)
        self.parts: dict[str, float] = defaultdict(float)
        self.began = self.ended = 0.0

    def batches(self, first: int) -> Generator[Rows, None, None]:
        self.began = time.perf_counter()
        try:
            with closing(self.source.batches(first)) as batches:
                while True:
                    asked = time.perf_counter()
                    rows = next(batches)
                    self.parts["waiting for rows"] += time.perf_counter() - asked
                    yield rows
        finally:
            self.ended = time.perf_counter()


@contextmanager
def _clocked(parts: dict[str, float]) -> Iterator[None]:
    """Add the seconds that parts of a training take to `parts`."""
    originals = {(cls, name): getattr(cls, name) for cls, name in _CLOCKED}
    for (cls, name), part in _CLOCKED.items():
        setattr(cls, name, _with_clock(originals[cls, name], part, parts))
    try:
        yield
    finally:
        for (cls, name), original in originals.items():
            setattr(cls, name, original)


def _with_clock(work: Any, part: str, parts: dict[str, float]) -> Any:
    @wraps(work)
    def clocked(*args: Any) -> Any:
        began = time.perf_counter()
        try:
            return work(*args)
        finally:
            parts[part] += time.perf_counter() - began

    return clocked


if __name__ == "__main__":
    main()
