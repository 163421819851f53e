"""Which dictionaries of a sweep train together: those that read the same batches and fit."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from sae.base import UserError, require
from sae.core.select import BLOCK_BYTES

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


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """What holds for a sweep as a whole; of no meaning for a single dictionary."""

    memory_gb: float | None = None
    """Gigabytes that dictionaries in training may take; by default four fifths of what is
    free."""
    evaluate: bool = True
    """Measure all dictionaries of a sweep on held-out text afterwards, as `sae eval` does."""
    n_behaviour_tokens: int = 2_048
    """Number of held-out tokens that cross-entropy and KL divergence are measured on, for each
    dictionary of a sweep; `sae eval` takes more."""
    max_l0: float = 60.0
    """Highest L0 of the dictionary that is recommended: the most faithful one up to it."""
    yes: bool = False
    """Train as many dictionaries as were asked for, even if they are more than a hundred."""

    def __post_init__(self) -> None:
        require(
            self.memory_gb is None or self.memory_gb > 0,
            f"sweep.memory_gb={self.memory_gb}; give more than 0",
        )
        require(
            self.n_behaviour_tokens >= 1,
            f"sweep.n_behaviour_tokens={self.n_behaviour_tokens}; give 1 or more",
        )
        require(self.max_l0 > 0, f"sweep.max_l0={self.max_l0}; give more than 0")


@dataclass(frozen=True, slots=True)
class Load:
    """What one dictionary asks of the machine."""

    name: str
    n_parameters: int
    batch_bytes: int
    """Of one batch, rows to read and to predict, in float32."""

    @property
    def kept_bytes(self) -> int:
        """For as long as it is in training."""
        return _KEPT_BYTES * self.n_parameters

    @property
    def passing_bytes(self) -> int:
        """While it takes a step, and of use to the next one afterwards."""
        blocks = _GRADIENT_BYTES * self.n_parameters + BLOCK_BYTES
        return blocks + _BATCHES * self.batch_bytes


def bytes_together(loads: Sequence[Load]) -> int:
    """Memory for dictionaries that train side by side."""
    passing = max((load.passing_bytes for load in loads), default=0)
    return sum(load.kept_bytes for load in loads) + passing


def turns(loads: Sequence[Load], budget: float) -> list[range]:
    """The dictionaries' places in their order, as many at once as fit `budget` bytes.

    Raises:
        UserError: if one alone does not fit.
    """
    found: list[range] = []
    for place, load in enumerate(loads):
        if bytes_together([load]) > budget:
            raise UserError(
                f"{load.name} needs {bytes_together([load]) / 1e9:.2f} GB and "
                f"{budget / 1e9:.2f} GB may be used; give a smaller sae.d_sae, or more with "
                "sweep.memory_gb=..."
            )
        first = found[-1].start if found else 0
        if not found or bytes_together(loads[first : place + 1]) > budget:
            found.append(range(place, place))
        found[-1] = range(found[-1].start, place + 1)
    return found


def memory_budget(config: SweepConfig, device: torch.device) -> float:
    """Bytes that dictionaries in training may take."""
    if config.memory_gb is not None:
        return config.memory_gb * 1e9
    if device.type == "cuda":
        return _SHARE_OF_FREE * float(torch.cuda.mem_get_info(device)[0])
    available = float(psutil.virtual_memory().available)
    return _SHARE_OF_FREE * min(available, _left_to_container())


def _left_to_container() -> float:
    """Bytes below the limit that a container sets, which the machine's free memory hides."""
    try:
        limit, used = (int((_CGROUP / f"memory.{n}").read_text()) for n in ("max", "current"))
        # What the system would give back: cached files count as used.
        statistics = (_CGROUP / "memory.stat").read_text().split()
    except (OSError, ValueError):
        return float("inf")
    return limit - used + int(statistics[statistics.index("inactive_file") + 1])


def seconds_for(multiplications: float, n_steps: int, device: torch.device) -> float:
    """About how long so many steps take whose encoders do so many multiply-adds in all."""
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
