"""A sweep of three dictionaries killed at fifty random instants, against one left alone.

Started again with the same configurations after every kill; a sweep that reaches its end is
compared with the one that nothing interrupted, removed, and another begun, until fifty kills
are counted. All in processes of the same number of threads.
"""

import json
import multiprocessing
import os
import random
import re
import shutil
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import sae
from benchmarks.common import HOOK, RUN, write_results
from benchmarks.reading import N_TOKENS
from sae.base import read_json
from sae.training.checkpoint import CheckpointConfig
from sae.training.config import SweepConfig, TrainConfig
from sae.training.train import TIMING_FILE

KILLS = 50
BATCH, N_STEPS, LOG_EVERY = 512, 850, 10
# Checkpoints that stay: more files to compare. The last step is none of these, because beside
# a last one that is kept for good stands the newest other one, whose step the clock decides.
KEEP_EVERY = 60
D_SAE, THREADS = 384, 1
SEED = 20_261_121
# A life is at most this share of a whole sweep's time.
LONGEST_LIFE = 0.35
# Torch imports its compiler when the first optimiser is made.
PRELOADED = ["sae.commands.train", "sae.core.cpu_kernels", "torch._dynamo"]
PHASES = ("before training", "training", "writing a checkpoint", "after the last step")
# Not decided by the training: the seconds spent, and who held the lock last.
_OWN = (TIMING_FILE, ".lock")


@dataclass
class _Lives:
    """What became of the processes."""

    phases: Counter[str] = field(default_factory=Counter)
    kept: list[int] = field(default_factory=list)
    """Steps that all dictionaries had saved at each kill."""
    gained: list[int] = field(default_factory=list)
    """Of these, steps that a life of its own added."""
    finished: int = 0
    """Sweeps that came to their end, and were compared."""
    different: list[str] = field(default_factory=list)


def main() -> None:
    """Count kills by phase, and compare every sweep that ended with the uninterrupted one."""
    sae.harvest(run=f"{RUN}/reading", hook_names=[HOOK], n_tokens=N_TOKENS)
    folder = Path(tempfile.mkdtemp(prefix="kill-training-"))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    whole = _configs(folder / "whole")
    # The first process also starts the one that all are forked from.
    _wait_for(context.Process(target=torch.get_num_threads))
    began = time.perf_counter()
    _wait_for(context.Process(target=_sweep, args=(whole,)))
    seconds = time.perf_counter() - began
    print(f"an uninterrupted sweep takes {seconds:.1f} s", flush=True)
    lives = _lives(context, folder, seconds)
    write_results("kill_training", _title(), [_row(lives, seconds)])
    shutil.rmtree(folder)


def _title() -> str:
    tokens = BATCH * N_STEPS
    return f"A sweep of three dictionaries, {tokens:,} tokens, killed with SIGKILL"


def _lives(context: Any, folder: Path, seconds: float) -> _Lives:
    """Start the sweep and kill it, until there were enough kills."""
    draw, found = random.Random(SEED), _Lives()
    whole, killed = _configs(folder / "whole"), _configs(folder / "killed")
    before = 0
    while found.phases.total() < KILLS:
        halves = _halves(killed)
        child = context.Process(target=_sweep, args=(killed,))
        child.start()
        child.join(draw.uniform(0, seconds * LONGEST_LIFE))
        if child.exitcode is None:
            child.kill()
            child.join()
            steps = _steps(killed)
            if steps < before:
                raise RuntimeError(f"steps were lost: {before}, then {steps}")
            phase = _phase(killed, halves)
            found.phases[phase] += 1
            found.kept.append(steps)
            found.gained.append(steps - before)
            before = steps
            print(f"kill {found.phases.total()}: {phase}, {steps} steps kept", flush=True)
        elif child.exitcode:
            raise RuntimeError(f"a sweep ended with exit code {child.exitcode}")
        else:
            before = _compare(found, whole, killed, folder)
    # The last one goes on to its end whatever it takes.
    _wait_for(context.Process(target=_sweep, args=(killed,)))
    _compare(found, whole, killed, folder)
    return found


def _compare(
    lives: _Lives, whole: list[TrainConfig], killed: list[TrainConfig], folder: Path
) -> int:
    """Note what differs, and begin anew."""
    different = _differences(whole, killed)
    lives.finished += 1
    lives.different += different
    print(f"sweep {lives.finished} ended: {different or 'all bytes are equal'}", flush=True)
    shutil.rmtree(folder / "killed")
    return 0


def _row(lives: _Lives, seconds: float) -> dict[str, object]:
    return {
        "kills": lives.phases.total(),
        **{phase: lives.phases[phase] for phase in PHASES},
        "sweeps ended": lives.finished,
        "seconds of a whole sweep": round(seconds, 1),
        "tokens kept at a kill (median)": round(statistics.median(lives.kept) * BATCH),
        "tokens gained a life (median)": round(statistics.median(lives.gained) * BATCH),
        "same bytes": not lives.different,
        "differences": ", ".join(sorted(set(lives.different))),
    }


def _configs(run: Path) -> list[TrainConfig]:
    kinds = (
        sae.StandardConfig(d_sae=D_SAE, l1_coefficient=2.0),
        sae.BatchTopKConfig(d_sae=D_SAE, k=16),
        sae.JumpReLUConfig(d_sae=D_SAE, target_l0=16.0),
    )
    return [
        TrainConfig(
            run=str(run),
            cache=str(RUN / "reading" / "cache.zarr"),
            sae=kind,
            training_tokens=BATCH * N_STEPS,
            train_batch_size_tokens=BATCH,
            log_every_steps=LOG_EVERY,
            checkpoint=CheckpointConfig(every_seconds=0.2, keep_every_steps=KEEP_EVERY),
            sweep=SweepConfig(evaluate=False),
        )
        for kind in kinds
    ]


def _sweep(configs: list[TrainConfig]) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    torch.set_num_threads(THREADS)
    sae.sweep(configs)


def _wait_for(child: Any) -> None:
    child.start()
    child.join()
    if child.exitcode:
        raise RuntimeError(f"a process ended with exit code {child.exitcode}")


def _steps(configs: list[TrainConfig]) -> int:
    """Return steps that every dictionary can go on from."""
    saved = [c.state_path.glob("step_*.pt") for c in configs]
    newest = [max((int(p.stem[5:]) for p in paths), default=0) for paths in saved]
    return min(newest)


def _phase(configs: list[TrainConfig], halves_before: set[Path]) -> str:
    """When the process died, from what it left."""
    if not all((c.state_path / "metrics.jsonl").exists() for c in configs):
        return PHASES[0]
    if _halves(configs) - halves_before:
        return PHASES[2]
    return PHASES[3] if _steps(configs) == N_STEPS else PHASES[1]


def _halves(configs: list[TrainConfig]) -> set[Path]:
    """Checkpoints whose writing was begun and never finished."""
    return {path for c in configs for path in c.state_path.glob(".step_*.partial")}


def _differences(whole: list[TrainConfig], killed: list[TrainConfig]) -> list[str]:
    """List what differs: names of files, their bytes, and log lines of a step twice."""
    folders = [Path(configs[0].run) for configs in (whole, killed)]
    wanted, found = ({p.relative_to(f) for p in _files(f)} for f in folders)
    different = [f"missing: {path}" for path in sorted(wanted - found)]
    # The names of unfinished files hold a number that is another one each time.
    left = {
        re.sub(r"\d+\.pt\.[0-9a-f]{8}|[0-9a-f]{8}", "*", str(path)) for path in found - wanted
    }
    different += [f"left behind: {path}" for path in sorted(left)]
    different += [
        f"other content: {path}"
        for path in sorted(wanted & found)
        if path.name not in _OWN and not _same(*(folder / path for folder in folders))
    ]
    for config in killed:
        lines = (config.state_path / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        if steps != list(range(LOG_EVERY, N_STEPS + 1, LOG_EVERY)):
            different.append(f"log lines: {config.id}")
        if read_json(config.state_path / TIMING_FILE)["seconds"] <= 0:
            different.append(f"no time: {config.id}")
    return different


def _same(path: Path, other: Path) -> bool:
    """Whether two files are equal: in their bytes, and for checkpoints in what they hold."""
    if path.suffix != ".pt":
        return path.read_bytes() == other.read_bytes()
    return _equal(*(torch.load(p, weights_only=True, mmap=True) for p in (path, other)))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


if __name__ == "__main__":
    main()
