"""What the benchmarks share: real rows, side-by-side timing, and writing results."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import sae

RESULTS = Path(__file__).parent / "results"
RUN = Path("runs/bench")
HOOK = "blocks.9.hook_resid_post"


def real_rows(n: int) -> torch.Tensor:
    """`n` rows of SmolLM2's layer 9, float32, harvested once."""
    cache = sae.harvest(run=str(RUN), hook_names=[HOOK], n_tokens=49_152)
    keep = torch.from_numpy(cache.text_rows())
    rows = cache.read(HOOK, slice(0, len(keep)))[keep].float()
    return rows.repeat(-(-n // len(rows)), 1)[:n]


def side_by_side(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each contender, taking turns so that drift hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for work in contenders.values():
        work()
    for _ in range(rounds):
        for name, work in contenders.items():
            began = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def write_results(name: str, title: str, rows: list[dict[str, object]]) -> None:
    """`results/{name}.json` and `.md`, and the table on the terminal."""
    RESULTS.mkdir(exist_ok=True)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"
    (RESULTS / f"{name}.json").write_text(
        json.dumps({"title": title, "machine": machine, "rows": rows}, indent=2) + "\n"
    )
    columns = list(rows[0])
    lines = [f"# {title}", "", f"{machine}.", "", "| " + " | ".join(columns) + " |"]
    lines.append("|" + "---|" * len(columns))
    lines += ["| " + " | ".join(str(row[c]) for c in columns) + " |" for row in rows]
    table = "\n".join(lines) + "\n"
    (RESULTS / f"{name}.md").write_text(table)
    print(table)
