"""Eight dictionaries in one pass: what a round costs, beside its parts, and beside SAELens.

A sweep as `sae train` runs it, reading a cache, with its log lines, its looks at held-out rows
and its checkpoints at their default pace. The weights are trained ones that no longer move, so
that every round does the same work, and the parts are measured on the same weights: the
encoder's product alone, and a trainer's update alone, which is that product and what is sparse.
Both take turns with the sweep, and so does SAELens, which trains the same eight one after
another from a cache of its own.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sae
from benchmarks import peers
from benchmarks.common import HOOK, RUN, PassedOn, write_results
from benchmarks.reading import N_TOKENS
from benchmarks.saelens_cache import saelens_harvest, saelens_store
from sae.architectures import ArchitectureConfig
from sae.core.screen import BLOCK_BYTES, MIN_BLOCK_ROWS
from sae.rows.shuffle import Rows
from sae.rows.source import RowSource
from sae.text.source import DataConfig, documents
from sae.training.config import SweepConfig, TrainConfig
from sae.training.loop import Start, Trainer, make_trainer
from sae.training.optim import OptimConfig
from sae.training.task import open_source, tasks_of
from sae.training.train import train_together

FOLDER = RUN / "sweep"
D_SAE, BATCH = 4_608, 4_096
TURNS, REPEATS = 2, 2
# One look at held-out rows comes every 25 steps by default, and so does it here.
N_STEPS = 25
WARM_BATCH = 1_024
# Its default, 20 sequences, is less than a batch and refused; reads are its default of 32.
SAELENS_MODULE, SAELENS_TOKENS = "model.layers.9", 16_384
SAELENS_BUFFERS = {"SAELens": 64, "SAELens at its best": 32}


@dataclass(frozen=True)
class Grid:
    """Eight configurations, and how they get to weights worth timing."""

    title: str
    architecture: str
    members: list[ArchitectureConfig]
    warm_steps: int


def _grids() -> list[Grid]:
    ks = (16, 20, 25, 32, 40, 48, 56, 64)
    penalties = (2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
    return [
        Grid("TopK", "topk", [sae.TopKConfig(d_sae=D_SAE, k=k) for k in ks], 10),
        Grid(
            "L1",
            "standard",
            [sae.StandardConfig(d_sae=D_SAE, l1_coefficient=c) for c in penalties],
            120,
        ),
    ]


def main() -> None:
    """Seconds of a round of both sweeps, of its parts, and of SAELens."""
    sae.harvest(run=f"{RUN}/reading", hook_names=[HOOK], n_tokens=N_TOKENS)
    folder = Path(tempfile.mkdtemp(prefix="sweep-"))
    texts = [str(text) for text in documents(DataConfig(name="factbook"))]
    saelens_harvest(
        texts, SAELENS_MODULE, SAELENS_TOKENS, 128, folder / "saelens", dtype="float32"
    )
    rows = [_measure(grid, folder / "saelens") for grid in _grids()]
    title = f"Eight dictionaries in one pass, d_in 576, d_sae {D_SAE:,}, batch {BATCH:,}"
    write_results("sweep", title, rows)
    shutil.rmtree(folder)
    shutil.rmtree(FOLDER)


def _measure(grid: Grid, saelens_cache: Path) -> dict[str, object]:
    shutil.rmtree(FOLDER, ignore_errors=True)
    configs = _warmed_up(grid)
    source = open_source(configs[0])
    alone = [_alone(config, source) for config in configs]
    # Kept open: its threads decide how OpenMP's wait, and a sweep has such ones too.
    reader = source.batches(0)
    (rows,) = next(reader)
    x, _ = alone[0].scaled((rows,))
    l0s = [_l0(trainer, x) for trainer in alone]
    print(f"{grid.title}: L0 {[round(l0) for l0 in l0s]}", flush=True)
    theirs, choice = _saelens(grid, alone, rows.float(), saelens_cache)
    rounds: list[_Round] = []
    products: list[list[float]] = [[] for _ in alone]
    updates: list[list[float]] = [[] for _ in alone]
    seconds: dict[str, list[list[float]]] = {n: [[] for _ in alone] for n in theirs}
    for turn in range(TURNS):
        rounds.append(_rounds(configs, source))
        for i, trainer in enumerate(alone):
            products[i] += _repeated(_product(trainer, x))
            updates[i] += _repeated(partial(trainer.update, x, x))
        for name, steps in theirs.items():
            for i, step in enumerate(steps):
                seconds[name][i].append(_clocked(step))
        print(f"turn {turn + 1}: {rounds[-1]}", flush=True)
    reader.close()
    return {
        "sweep": f"{grid.title}, {len(configs)} of L0 {min(l0s):.0f} to {max(l0s):.0f}",
        **_ours(rounds, _summed(products), _summed(updates)),
        **_times_ours({n: _summed(s) for n, s in seconds.items()}, rounds),
        "SAELens's best choice": choice,
    }


@dataclass(frozen=True)
class _Round:
    """Seconds of a round, on average over a sweep."""

    stepping: float
    """Rows, steps, log lines and looks at held-out rows."""
    saving: float
    """Checkpoints' share of it, at their default pace."""
    waiting: float
    """Of `stepping`, until the rows were there."""

    @property
    def whole(self) -> float:
        return self.stepping + self.saving


def _ours(rounds: list[_Round], product: float, update: float) -> dict[str, object]:
    whole = statistics.median(r.whole for r in rounds)
    return {
        "round (s)": round(whole, 3),
        "of it checkpoints": f"{statistics.median(r.saving for r in rounds) / whole:.1%}",
        "of it waiting for rows": f"{statistics.median(r.waiting for r in rounds) / whole:.1%}",
        "eight encoder products alone (s)": round(product, 3),
        "eight sparse parts alone (s)": round(update - product, 3),
        "round / (products + sparse parts)": round(whole / update, 3),
        "round / products": round(whole / product, 3),
    }


def _times_ours(theirs: dict[str, float], rounds: list[_Round]) -> dict[str, object]:
    whole = statistics.median(r.whole for r in rounds)
    found: dict[str, object] = {}
    for name, seconds in theirs.items():
        found[f"{name}, one after another (s)"] = round(seconds, 2)
        found[f"{name} (times ours)"] = round(seconds / whole, 2)
    return found


def _summed(seconds: Sequence[Sequence[float]]) -> float:
    return sum(statistics.median(one) for one in seconds)


def _clocked(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _repeated(work: Callable[[], object]) -> list[float]:
    work()
    return [_clocked(work) for _ in range(REPEATS)]


def _warmed_up(grid: Grid) -> list[TrainConfig]:
    """Return configurations that begin with trained weights and keep them."""
    common: dict[str, Any] = {
        "run": str(FOLDER / "warm"),
        "cache": str(RUN / "reading" / "cache.zarr"),
        "sweep": SweepConfig(evaluate=False),
    }
    warm = [
        TrainConfig(
            sae=member,
            training_tokens=grid.warm_steps * WARM_BATCH,
            train_batch_size_tokens=WARM_BATCH,
            **common,
        )
        for member in grid.members
    ]
    sae.sweep(warm)
    # The rate moves no float32 weight. Nothing counts as dead before the end.
    still = OptimConfig(lr=1e-9, lr_warm_up_steps=0, lr_decay_steps=0)
    return [
        replace(
            config,
            run=str(FOLDER / "timed"),
            name=config.id,
            sae=_without_warm_up(config.sae),
            init_from=str(config.dictionary_path),
            optim=still,
            training_tokens=N_STEPS * BATCH,
            train_batch_size_tokens=BATCH,
            dead_feature_window=1.0,
        )
        for config in warm
    ]


def _without_warm_up(member: ArchitectureConfig) -> ArchitectureConfig:
    if isinstance(member, sae.StandardConfig):
        return replace(member, l1_warm_up_fraction=0.0)
    return member


def _alone(config: TrainConfig, source: RowSource) -> Trainer:
    """Return a trainer with the weights of the sweep, in a run that has no end."""
    start = Start.of(source.sample(), None)
    trainer = make_trainer(config, start)
    trainer.step, trainer.n_steps, trainer.dead_window_rows = 10**6, 10**7, 10**12
    return trainer


def _l0(trainer: Trainer, x: Tensor) -> float:
    return trainer.update(x, x).metrics()["metrics/l0"]


def _product(trainer: Trainer, x: Tensor) -> Callable[[], object]:
    """Compute the encoder's product alone, in blocks as a step does, into memory at hand."""
    weight = trainer.sae.encoder().detach()
    rows = max(MIN_BLOCK_ROWS, BLOCK_BYTES // (len(weight) * x.element_size()))
    block = torch.empty(min(rows, len(x)), len(weight))

    def product() -> None:
        for part in torch.split(x, len(block)):
            torch.mm(part, weight.t(), out=block[: len(part)])

    return product


class _Clock(PassedOn):
    """A source that notes when batches are asked for and given, and how long saving takes."""

    def __init__(self, source: RowSource) -> None:
        super().__init__(source)
        self.asked: list[float] = []
        self.given: list[float] = []
        self.saves: list[float] = []

    def batches(self, first: int) -> Generator[Rows, None, None]:
        with closing(self.source.batches(first)) as batches:
            try:
                while True:
                    self.asked.append(time.perf_counter())
                    rows = next(batches)
                    self.given.append(time.perf_counter())
                    yield rows
            finally:
                self.asked.append(time.perf_counter())

    def save(self, n_batches: int) -> None:
        self.saves.append(-time.perf_counter())
        self.source.save(n_batches)

    def forget(self) -> None:
        self.source.forget()
        self.saves[-1] += time.perf_counter()

    def round(self, every_seconds: float) -> _Round:
        """Averages without the first round, which finds no memory to use again."""
        n = len(self.given) - 1
        saving = statistics.mean(self.saves)
        stepping = (self.asked[-1] - self.asked[1] - sum(self.saves)) / n
        waiting = sum(b - a for a, b in zip(self.asked[1:], self.given[1:], strict=False)) / n
        # As sae/training/train.py paces it.
        pause = max(every_seconds, saving / 0.02)
        return _Round(stepping, stepping * saving / pause, waiting)


def _rounds(configs: list[TrainConfig], source: RowSource) -> _Round:
    shutil.rmtree(FOLDER / "timed", ignore_errors=True)
    clock = _Clock(source)
    train_together(tasks_of(configs, source), clock)
    return clock.round(configs[0].checkpoint.every_seconds)


def _saelens(
    grid: Grid, alone: list[Trainer], rows: Tensor, cache: Path
) -> tuple[dict[str, list[Callable[[], object]]], str]:
    """SAELens's steps of the eight, as they come and at their best, and what that is."""

    def step(i: int, **choice: Any) -> peers.Step | None:
        member = grid.members[i]
        weights = alone[i].sae.dictionary(alone[i].scaling, alone[i].output_scaling).tensors
        return peers.saelens_step(
            grid.architecture,
            weights,
            rows,
            k=getattr(member, "k", None),
            coefficient=getattr(member, "l1_coefficient", None),
            **choice,
        )

    middle = len(alone) // 2
    found: list[tuple[float, dict[str, Any]]] = []
    for choice in peers.saelens_choices(grid.architecture):
        tried = step(middle, **choice)
        if tried is None:
            return {}, "not installed"
        # The first may compile.
        found.append((min(_clocked(tried) for _ in range(2)), choice))
        print(f"SAELens {choice}: {found[-1][0]:.2f} s", flush=True)
    best = min(found, key=lambda pair: pair[0])[1]
    contenders = {}
    for name, choice in zip(SAELENS_BUFFERS, ({}, best), strict=True):
        batches = _saelens_batches(cache, SAELENS_BUFFERS[name])
        steps = [step(i, **choice) for i in range(len(alone))]
        contenders[name] = [_with_rows(one, batches) for one in steps if one is not None]
        for one in contenders[name]:
            one()
    return contenders, str(best or "as it comes")


def _saelens_batches(cache: Path, n_sequences: int) -> Iterator[Tensor]:
    return saelens_store(
        cache,
        576,
        SAELENS_MODULE,
        BATCH,
        n_batches_in_buffer=n_sequences,
        store_batch_size_prompts=32,
    )


def _with_rows(step: Any, batches: Iterator[Tensor]) -> Callable[[], object]:
    """SAELens's training step, a partial of its trainer's, on the rows that come next."""
    train_step, (model, _) = step.func, step.args
    return lambda: train_step(model, next(batches))


if __name__ == "__main__":
    main()
