"""What the benchmarks share: real rows, side-by-side timing, and writing results."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import sae
from sae.core.int8_tile import HERE, LAYOUTS
from sae.rows.shuffle import Rows
from sae.rows.source import RowSource

RESULTS = Path(__file__).parent / "results"
RUN = Path("runs/bench")
HOOK = "blocks.9.hook_resid_post"


def real_rows(n: int) -> torch.Tensor:
    """`n` rows of SmolLM2's layer 9, float32, harvested once."""
    cache = sae.harvest(run=str(RUN), hook_names=[HOOK], n_tokens=49_152)
    keep = torch.from_numpy(cache.text_rows())
    rows = cache.read(HOOK, slice(0, len(keep)))[keep].float()
    return rows.repeat(-(-n // len(rows)), 1)[:n]


def side_by_side(contenders: dict[Any, Callable[[], object]], rounds: int) -> dict[Any, float]:
    """Median seconds of each contender, taking turns so that drift hits all alike."""

    def seconds(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return medians({name: partial(seconds, work) for name, work in contenders.items()}, rounds)


def medians(contenders: dict[Any, Callable[[], float]], rounds: int) -> dict[Any, float]:
    """Median of what each contender returns, seconds say, taking turns after a first go."""
    for work in contenders.values():
        work()
    found = [{name: work() for name, work in contenders.items()} for _ in range(rounds)]
    return {name: statistics.median(one[name] for one in found) for name in contenders}


class PassedOn(RowSource):
    """The rows of another source, for those who note when they are asked for and given."""

    def __init__(self, source: RowSource) -> None:
        self.source, self.identity = source, source.identity
        self.places, self.record = source.places, source.record
        self.buffer_bytes = source.buffer_bytes

    def sample(self) -> Rows:
        return self.source.sample()

    def held_out(self, n_rows: int) -> Rows | None:
        return self.source.held_out(n_rows)

    def batches(self, first: int) -> Generator[Rows, None, None]:
        return self.source.batches(first)

    def save(self, n_batches: int) -> None:
        self.source.save(n_batches)

    def forget(self) -> None:
        self.source.forget()


def rows_there(name: str) -> list[dict[str, Any]]:
    """Return the rows of `results/{name}.json`, none if it is not there."""
    place = RESULTS / f"{name}.json"
    rows: list[dict[str, Any]] = []
    if place.exists():
        rows += json.loads(place.read_text())["rows"]
    return rows


def write_results(name: str, title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """`results/{name}.json` and `.md`, and the table on the terminal."""
    RESULTS.mkdir(exist_ok=True)
    # Which instructions there are decides what products take.
    instructions = next((name for name, one in LAYOUTS.items() if one is HERE), "no int8")
    machine = f"{os.cpu_count()} cores, {platform.machine()} ({instructions}), "
    machine += f"torch {torch.__version__}"
    (RESULTS / f"{name}.json").write_text(
        json.dumps({"title": title, "machine": machine, "rows": rows}, indent=2) + "\n"
    )
    columns = list(dict.fromkeys(c for row in rows for c in row))
    lines = [f"# {title}", "", f"{machine}.", "", "| " + " | ".join(columns) + " |"]
    lines.append("|" + "---|" * len(columns))
    lines += ["| " + " | ".join(str(row.get(c, "")) for c in columns) + " |" for row in rows]
    table = "\n".join(lines) + "\n"
    (RESULTS / f"{name}.md").write_text(table)
    print(table)
