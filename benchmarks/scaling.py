"""How time and memory of a TopK step grow with the dictionary and the batch, with the floor.

Every point is a process of its own, so that its peak of memory is its own. The floor is the
encoder's product alone, into memory at hand; the memory bound is 16 bytes a parameter
(weight, gradient, two moments), one block of pre-activations, and the batch.
"""

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.common import real_rows, write_results
from sae.architectures import TopKConfig
from sae.core.scaling import InputScaling
from sae.core.screen import BLOCK_BYTES, MIN_BLOCK_ROWS
from sae.training.loop import Trainer
from sae.training.optim import OptimConfig

WIDTHS = (4_096, 8_192, 16_384, 32_768, 65_536)
BATCHES = (1_024, 4_096, 16_384)
PICTURE = Path("docs/images/scaling.png")


def main() -> None:
    """Measure the grid, write the table and the picture."""
    real_rows(1)
    points = []
    for batch in BATCHES:
        for d_sae in WIDTHS:
            command = [sys.executable, "-m", "benchmarks.scaling", str(d_sae), str(batch)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            points.append(json.loads(done.stdout.strip().split("\n")[-1]))
            print(points[-1], flush=True)
    write_results("scaling", "A TopK step (k 32, d_in 576) and its floor", points)
    _draw(points)


def _point(d_sae: int, batch: int) -> dict[str, float]:
    rows = real_rows(batch)
    x = InputScaling.of(rows)(rows)
    _warm_up(x)
    before = _memory("VmRSS")
    same = InputScaling(torch.zeros(x.shape[1]), 1.0)
    sae = TopKConfig(d_sae=d_sae).build(x[:512], torch.Generator().manual_seed(0))
    optim = OptimConfig(lr_warm_up_steps=0, lr_decay_steps=0)
    trainer = Trainer(sae, same, optim, lr=1e-6, n_steps=10**9, dead_window_rows=10**12)

    def step() -> None:
        trainer.update(*trainer.scaled((rows,)))

    # The peak of building, which reads a sample densely, is not a step's.
    Path("/proc/self/clear_refs").write_text("5")
    step()
    ours = _median(step)
    peak = _memory("VmHWM") - before
    encoder = sae.W_enc_t.detach().clone()
    out = torch.empty(batch, d_sae)
    floor = _median(lambda: torch.mm(x, encoder.t(), out=out))
    parameters = sum(p.numel() for p in sae.parameters())
    block = min(batch, max(MIN_BLOCK_ROWS, BLOCK_BYTES // (4 * d_sae))) * d_sae * 4
    bound = 16 * parameters + block + x.numel() * 4
    return {
        "d_sae": d_sae,
        "batch": batch,
        "step (s)": round(ours, 4),
        "floor (s)": round(floor, 4),
        "step / floor": round(ours / floor, 2),
        "tokens/s": round(batch / ours),
        "peak memory (MB)": round(peak / 1e6),
        "bound (MB)": round(bound / 1e6),
        "peak / bound": round(peak / bound, 2),
    }


def _warm_up(x: torch.Tensor) -> None:
    """Load what a first step loads, on a tiny dictionary."""
    sae = TopKConfig(d_sae=64).build(x[:64], torch.Generator().manual_seed(0))
    same = InputScaling(torch.zeros(x.shape[1]), 1.0)
    optim = OptimConfig()
    trainer = Trainer(sae, same, optim, lr=1e-6, n_steps=2, dead_window_rows=10**9)
    for _ in range(2):
        trainer.update(*trainer.scaled((x[:64],)))


def _median(work: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _memory(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _draw(points: list[dict[str, float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for batch, colour in zip(BATCHES, ("#4477aa", "#228833", "#aa3377"), strict=True):
        line = [p for p in points if p["batch"] == batch]
        widths = [p["d_sae"] for p in line]
        axes.plot(widths, [p["step (s)"] for p in line], "o-", color=colour, label=f"{batch:,}")
        axes.plot(widths, [p["floor (s)"] for p in line], "--", color=colour, lw=1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(WIDTHS, [f"{w // 1024}k" for w in WIDTHS])
    axes.set_xlabel("latents (d_sae)")
    axes.set_ylabel("seconds a step")
    axes.set_title("TopK step, k = 32, two cores; dashed: the encoder's product alone")
    axes.legend(title="rows a batch")
    axes.grid(alpha=0.3, which="both")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=150)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(_point(int(sys.argv[1]), int(sys.argv[2]))))
    else:
        main()
