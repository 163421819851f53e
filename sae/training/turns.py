"""Which dictionaries of a sweep train together, and the time that they take on this machine."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from sae.base import UserError, duration, say
from sae.cache.layout import open_cache
from sae.core.screen import BLOCK_BYTES, MIN_BLOCK_ROWS, matmuls_here
from sae.models import Site, resolve_device
from sae.rows.source import RowSource
from sae.run import missing
from sae.training.config import SweepConfig, TrainConfig
from sae.training.loop import Diverged
from sae.training.task import Task
from sae.training.train import train_together

# For each parameter: weights and Adam's two moments stay. Besides, whatever is more: gradients,
# which live only while their dictionary takes its step; or what a dictionary for raw rows is
# folded from, in float64, whenever it is measured or saved.
_WEIGHT_BYTES, _MOMENT_BYTES, _GRADIENT_BYTES, _FOLDING_BYTES = 4, 8, 4, 22
# First directions: rows of the sample, noise, both at norm one, and their sum.
_DIRECTION_BYTES = 10
# Rows of a batch in float32, as they come, scaled, reconstructed, differentiated, ....
_BATCHES = 16
# Of a latent, in each row that is encoded densely: pre-activations and pairs that are sorted
# for a quantile, of the sample's first rows, when a dictionary is made; and what leads to its
# activations, of the rows that it is measured on.
_SORTED_BYTES, _ENCODED_BYTES = 20, 13
_SAMPLE_ROWS, _MEASURED_ROWS = 1024, 2048
_SHARE_OF_FREE = 0.8
# A step over the encoder's float32 product alone, and where 8-bit products find active latents
# (benchmarks/results/floor.md, on a CPU).
_STEP_OVER_PRODUCT, _STEP_WITH_INT8 = 1.7, 1.1
# What a step takes beside: some hundred calls of small kernels.
_STEP_SECONDS = 8e-3
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Load:
    """Memory and time that one dictionary needs."""

    name: str
    d_sae: int
    latent_parameters: int
    """Parameters of one latent."""
    other_parameters: int = 0
    batch_bytes: int = 0
    """Bytes of one batch in float32, of rows to read and to predict."""
    measured_rows: int = 0
    """Rows that are encoded at once when it is measured."""

    @classmethod
    def of(cls, config: TrainConfig, widths: Sequence[int]) -> "Load":
        """Return the load of a training on rows of these widths."""
        d_in, d_out = widths[0], widths[-1]
        return cls(
            config.id,
            config.sae.d_sae,
            # Four vectors of latents at most: biases, thresholds, gates.
            latent_parameters=d_in + d_out + 4,
            other_parameters=d_out + (d_in * d_out if config.sae.skip_connection else 0),
            batch_bytes=4 * config.train_batch_size_tokens * sum(widths),
            measured_rows=min(config.n_eval_rows, _MEASURED_ROWS),
        )

    @property
    def n_parameters(self) -> int:
        """All its parameters."""
        return self.d_sae * self.latent_parameters + self.other_parameters

    @property
    def building(self) -> int:
        """Bytes beside the weights while first ones are made."""
        dense = _SORTED_BYTES * _SAMPLE_ROWS * self.d_sae
        return max(_DIRECTION_BYTES * self.n_parameters, dense)

    @property
    def training(self) -> int:
        """Bytes beside weights and moments while it takes a step, is measured, or saved."""
        block = max(BLOCK_BYTES, 4 * MIN_BLOCK_ROWS * self.d_sae)
        step = _GRADIENT_BYTES * self.n_parameters + block + _BATCHES * self.batch_bytes
        dense = _ENCODED_BYTES * self.measured_rows * self.d_sae
        measured = 2 * _WEIGHT_BYTES * self.n_parameters + dense
        return max(step, measured, _FOLDING_BYTES * self.n_parameters)

    def largest(self, budget: float) -> int:
        """Return the most latents that fit `budget` bytes alone."""
        low, high = 0, self.d_sae
        while low < high:
            middle = (low + high + 1) // 2
            fits = bytes_together([replace(self, d_sae=middle)]) <= budget
            low, high = (middle, high) if fits else (low, middle - 1)
        return low


def bytes_together(loads: Sequence[Load]) -> int:
    """Return the memory for dictionaries that train side by side.

    All are made before the first one takes a step, and what one takes for a step is of use to
    the next one afterwards.
    """
    n = sum(load.n_parameters for load in loads)
    built = _WEIGHT_BYTES * n + max(load.building for load in loads)
    trained = (_WEIGHT_BYTES + _MOMENT_BYTES) * n + max(load.training for load in loads)
    return max(built, trained)


def check_memory(tasks: Sequence[Task], source: RowSource) -> None:
    """Refuse dictionaries of which one does not fit in memory, before any is made.

    Raises:
        UserError: with the width that would fit.
    """
    config = tasks[0].config
    budget = _memory_budget(config.sweep, resolve_device(config.device), source)
    turns([Load.of(task.config, _widths(source)) for task in tasks], budget)


def _widths(source: RowSource) -> list[int]:
    sites = [place.width if isinstance(place, Site) else 0 for place in source.places]
    return sites if all(sites) else [side.shape[1] for side in source.sample()]


def turns(loads: Sequence[Load], budget: float) -> list[range]:
    """Return the places of dictionaries that fit `budget` bytes at once; one alone has to."""
    found: list[range] = []
    for place, load in enumerate(loads):
        alone = bytes_together([load])
        if alone > budget:
            largest = load.largest(budget)
            cure = f"sae.d_sae={largest} would fit" if largest else "no width would fit"
            raise UserError(
                f"{load.name} needs {alone / 1e9:,.2f} GB of memory to train, and "
                f"{max(0.0, budget) / 1e9:,.2f} GB may be used (sweep.memory_gb, by default "
                f"four fifths of what is free); {cure}"
            )
        if found and bytes_together(loads[found[-1].start : place + 1]) <= budget:
            found[-1] = range(found[-1].start, place + 1)
        else:
            found.append(range(place, place + 1))
    return found


def _memory_budget(config: SweepConfig, device: torch.device, source: RowSource) -> float:
    """Bytes that dictionaries may take, beside the rows that wait to be trained on."""
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
    return _SHARE_OF_FREE * (available - source.buffer_bytes)


def _side(device: torch.device) -> int:
    return 4096 if device.type == "cuda" else 768


def product_seconds(device: torch.device) -> float:
    """Return how long a product of two square float32 matrices takes here, the best of five.

    Their side is 768 on a CPU and 4,096 on a GPU.
    """
    side, best = _side(device), float("inf")
    a, out = torch.ones(side, side, device=device), torch.empty(side, side, device=device)
    for _ in range(5):
        began = time.perf_counter()
        torch.mm(a, a, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return best


def _seconds_for(configs: Sequence[TrainConfig], widths: Sequence[int]) -> float:
    """About how long trainings take, each on rows of its width."""
    device = resolve_device(configs[0].device)
    n_steps = sum(config.n_steps for config in configs)
    # Of the encoders, for all rows.
    multiplications = sum(
        d_in * config.n_steps * config.train_batch_size_tokens * config.sae.d_sae
        for config, d_in in zip(configs, widths, strict=True)
    )
    best, side = product_seconds(device), _side(device)
    int8 = device.type == "cpu" and "int8" in matmuls_here(device, torch.float32)
    asked = {config.matmul for config in configs}
    step = _STEP_WITH_INT8 if int8 and asked <= {"auto", "int8"} else _STEP_OVER_PRODUCT
    return step * multiplications * best / side**3 + _STEP_SECONDS * n_steps


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


def train_in_turns(
    tasks: Sequence[Task], source: RowSource, command: str
) -> tuple[list[list[Task]], list[Diverged]]:
    """Train those that are not there, in as few passes over their rows as memory allows.

    If some diverge the others are finished first.

    Returns:
        the turns that they were trained in, and what diverged.
    """
    plan, diverged = in_turns(missing(tasks, command), source), []
    for turn in plan:
        try:
            train_together(turn, source)
        except Diverged as error:
            diverged.append(error)
    return plan, diverged


def in_turns(tasks: Sequence[Task], source: RowSource) -> list[list[Task]]:
    """Part a sweep into turns that fit in memory, and say how long it will take."""
    if not tasks:
        return []
    configs = [task.config for task in tasks]
    widths = _widths(source)
    loads = [Load.of(config, widths) for config in configs]
    device = resolve_device(configs[0].device)
    plan = turns(loads, _memory_budget(configs[0].sweep, device, source))
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
