"""Which dictionaries of a sweep train together, and the time that they take on this machine."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from sae.base import UserError, duration, require, say
from sae.cache.layout import open_cache
from sae.core.select import BLOCK_BYTES
from sae.models import resolve_device
from sae.rows.source import RowSource
from sae.training.config import SweepConfig, TrainConfig
from sae.training.task import Task

# Weights, and Adam's two moments; gradients live only while their dictionary takes its step.
_KEPT_BYTES, _GRADIENT_BYTES = 12, 4
# Rows of a batch in float32, as they come, scaled, reconstructed, differentiated, ....
_BATCHES = 16
_SHARE_OF_FREE = 0.8
# A step over the encoder's product alone (benchmarks/results/floor.md).
_STEP_OVER_PRODUCT = 1.5
# What a step takes beside: some hundred calls of small kernels.
_STEP_SECONDS = 8e-3
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Load:
    """What one dictionary asks of the machine."""

    name: str
    n_parameters: int
    batch_bytes: int
    """Bytes of one batch in float32, of rows to read and to predict."""

    @classmethod
    def of(cls, config: TrainConfig, widths: Sequence[int]) -> "Load":
        """Return the load of a training on rows of these widths."""
        d_in, d_out = widths[0], widths[-1]
        # Four vectors of latents at most: biases, thresholds, gates.
        n_parameters = config.sae.d_sae * (d_in + d_out + 4) + d_out
        if config.sae.skip_connection:
            n_parameters += d_in * d_out
        return cls(config.id, n_parameters, 4 * config.train_batch_size_tokens * sum(widths))


def bytes_together(loads: Sequence[Load]) -> int:
    """Return the memory for dictionaries that train side by side."""
    # What one takes for a step is of use to the next one afterwards.
    for_a_step = max(
        _GRADIENT_BYTES * load.n_parameters + BLOCK_BYTES + _BATCHES * load.batch_bytes
        for load in loads
    )
    return _KEPT_BYTES * sum(load.n_parameters for load in loads) + for_a_step


def turns(loads: Sequence[Load], budget: float) -> list[range]:
    """Return the places of dictionaries that fit `budget` bytes at once; one alone has to."""
    found: list[range] = []
    for place, load in enumerate(loads):
        alone = bytes_together([load])
        require(
            alone <= budget,
            f"{load.name} needs {alone / 1e9:.2f} GB and {budget / 1e9:.2f} GB may be used; "
            "give a smaller sae.d_sae, or more with sweep.memory_gb=...",
        )
        if found and bytes_together(loads[found[-1].start : place + 1]) <= budget:
            found[-1] = range(found[-1].start, place + 1)
        else:
            found.append(range(place, place + 1))
    return found


def _memory_budget(config: SweepConfig, device: torch.device) -> float:
    if config.memory_gb is not None:
        return config.memory_gb * 1e9
    if device.type == "cuda":
        return _SHARE_OF_FREE * float(torch.cuda.mem_get_info(device)[0])
    available = float(psutil.virtual_memory().available)
    # The machine's free memory hides the limit that a container sets.
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((_CGROUP / f"memory.{n}").read_text()) for n in ("max", "current"))
        # What the system would give back: cached files count as used.
        statistics = (_CGROUP / "memory.stat").read_text().split()
        inactive = int(statistics[statistics.index("inactive_file") + 1])
        available = min(available, limit - used + inactive)
    return _SHARE_OF_FREE * available


def _seconds_for(configs: Sequence[TrainConfig], widths: Sequence[int]) -> float:
    """About how long trainings take, each on rows of its width."""
    device = resolve_device(configs[0].device)
    n_steps = sum(config.n_steps for config in configs)
    # Of the encoders, for all rows.
    multiplications = sum(
        d_in * config.n_steps * config.train_batch_size_tokens * config.sae.d_sae
        for config, d_in in zip(configs, widths, strict=True)
    )
    side = 4096 if device.type == "cuda" else 768
    a, out = torch.ones(side, side, device=device), torch.empty(side, side, device=device)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        torch.mm(a, a, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return _STEP_OVER_PRODUCT * multiplications * best / side**3 + _STEP_SECONDS * n_steps


def expected_seconds(configs: Sequence[TrainConfig]) -> float | None:
    """Return about how long the training takes here; None without a cache to tell."""
    widths = []
    for config in configs:
        if config.cache_location is None:
            return None
        try:
            cache = open_cache(config.cache_location)
            widths.append(cache.d_in(cache.hook(config.hook_name)))
        except UserError:
            return None
    return _seconds_for(configs, widths) if configs else 0.0


def in_turns(tasks: Sequence[Task], source: RowSource) -> list[list[Task]]:
    """Part a sweep into turns that fit in memory, and say how long it will take."""
    if not tasks:
        return []
    configs = [task.config for task in tasks]
    widths = [side.shape[1] for side in source.sample()]
    loads = [Load.of(config, widths) for config in configs]
    device = resolve_device(configs[0].device)
    plan = turns(loads, _memory_budget(configs[0].sweep, device))
    time = duration(_seconds_for(configs, [widths[0]] * len(configs)))
    most = max(bytes_together(loads[turn.start : turn.stop]) for turn in plan)
    sizes = " and ".join(str(len(turn)) for turn in plan)
    how = "in one pass" if len(plan) == 1 else f"in {len(plan)} turns of {sizes}"
    n = len(tasks)
    say(
        f"train: {n} {'dictionary' if n == 1 else 'dictionaries'} {how}, {most / 1e9:.2f} GB, "
        f"about {time}"
    )
    return [[tasks[place] for place in turn] for turn in plan]
