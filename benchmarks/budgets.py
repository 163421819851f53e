"""How the best learning rate, batch and warm-up move with the number of rows and the width.

On a world whose features are known, the share of them that is recovered; on a cache of real
activations, explained variance at k = 32. Dictionaries that read the same batches train side by
side. Every figure is kept as soon as it is there, and what is there is not measured again:
`python -m benchmarks.budgets truth 2e6` goes up to two million rows, and
`python -m benchmarks.budgets real 2e6` does on SmolLM2's activations.
"""

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path

import torch

import sae
from benchmarks import quality
from benchmarks.common import HOOK, rows_there, write_results
from sae.architectures import TopKConfig
from sae.core.fidelity import ReconstructionStatistics
from sae.dictionary import add_reconstruction, load_dictionary
from sae.evaluation.truth import score_truth
from sae.rows.known import KnownRows
from sae.rows.source import RowSource
from sae.synthetic import WorldConfig, open_world
from sae.training.config import TrainConfig
from sae.training.loop import Diverged
from sae.training.optim import OptimConfig
from sae.training.task import open_source, tasks_of
from sae.training.train import train_together

# Without trees and correlations, so that what is hard here is to be trained, not to be told.
WORLD = WorldConfig(n_roots=0, rank=0, correlation=0, max_rate=0.23, min_rate=0.006)
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
N_SCORED = 32_768
REAL_K, TRUE_K = 32, 8
Measured = Mapping[str, float | None]
"""Figures of a training by name; None where there is none."""


@dataclass(frozen=True, order=True)
class Cell:
    """One training of the grid: its rows, width, batch, warm-up, seed and rate."""

    rows: int
    d_sae: int
    batch: int
    warm_up: float = 0.05
    """Share of the steps over which the rate rises."""
    seed: int = 1
    lr: float = 3e-3

    def config(self, run: str, k: int) -> TrainConfig:
        """Return the training of a TopK dictionary."""
        steps = self.rows // self.batch
        return TrainConfig(
            run=run,
            name="-".join(f"{value:g}" for value in vars(self).values()),
            sae=TopKConfig(d_sae=self.d_sae, k=k),
            optim=OptimConfig(lr=self.lr, lr_warm_up_steps=int(self.warm_up * steps)),
            training_tokens=self.rows,
            train_batch_size_tokens=self.batch,
            seed=self.seed,
            n_eval_rows=1024,
        )


def truth_cells(most: float) -> Iterator[Cell]:
    """Give the trainings on a world, the cheapest first."""
    for rows, batch, d_sae in product(
        (500_000, 2_000_000, 8_000_000), (4_096, 1_024), (512, 1_024)
    ):
        seeds = (1, 2) if rows < 1e6 else (1,)
        if rows <= most and (rows < 4e6 or d_sae == 512):
            yield from (
                Cell(rows, d_sae, batch, seed=seed, lr=lr) for seed in seeds for lr in RATES
            )
    for rows, warm_up in product((500_000, 2_000_000), (0.0, 0.2)):
        if rows <= most:
            yield from (Cell(rows, 512, 1_024, warm_up, lr=lr) for lr in RATES[1:])
    if most >= 2e6:
        # Many steps of few rows: what a longer training would take.
        yield from (Cell(2_000_000, 1_024, 256, lr=lr) for lr in (7e-4, 1.4e-3, 3e-3))
    if most >= 5e7:
        yield from (Cell(50_000_000, 512, 4_096, lr=lr) for lr in RATES[:3])


def real_cells(most: float) -> Iterator[Cell]:
    """Give the trainings on real activations."""
    for rows, d_sae in product((400_000, 1_600_000, 6_400_000), (576, 2_304, 4_608)):
        if rows <= most and rows * d_sae < 4e9:
            yield from (Cell(rows, d_sae, 1_024, lr=lr) for lr in RATES)
    for rows in (400_000, 1_600_000):
        if rows <= most:
            yield from (Cell(rows, 2_304, 4_096, lr=lr) for lr in RATES)


def trained(
    cells: Sequence[Cell], source: RowSource, run: str, k: int
) -> dict[Cell, TrainConfig]:
    """Train cells of one source side by side; those that diverge are left out."""
    configs = {cell: cell.config(run, k) for cell in cells}
    try:
        train_together(tasks_of(list(configs.values()), source), source)
    except Diverged as error:
        print(error)
    return {cell: one for cell, one in configs.items() if one.dictionary_path.exists()}


def measure_truth(cells: Sequence[Cell]) -> dict[Cell, Measured]:
    """Train on the world and score beside its truth."""
    world = open_world(WORLD)
    found: dict[Cell, Measured] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = KnownRows(world, cells[0].batch)
        for cell, config in trained(cells, source, folder, TRUE_K).items():
            findings = score_truth(load_dictionary(config.dictionary_path), world, N_SCORED)
            found[cell] = {one.key: one.value for one in findings}
    return found


def measure_real(cells: Sequence[Cell]) -> dict[Cell, Measured]:
    """Train on the cache of `benchmarks.quality` and measure on its held-out rows."""
    sae.harvest(run=str(quality.RUN), hook_names=[HOOK], n_tokens=448_000)
    found: dict[Cell, Measured] = {}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "cache.zarr").symlink_to((quality.RUN / "cache.zarr").resolve())
        source = open_source(cells[0].config(folder, REAL_K))
        held_out = source.held_out(N_SCORED)
        assert held_out is not None
        for cell, config in trained(cells, source, folder, REAL_K).items():
            dictionary = load_dictionary(config.dictionary_path).to("cpu")
            statistics = ReconstructionStatistics(dictionary.d_in, dictionary.d_sae)
            for x in torch.split(held_out[0].float(), 2_048):
                add_reconstruction(statistics, dictionary, x, x)
            found[cell] = statistics.metrics()
    return found


def main(kind: str, most: float) -> None:
    """Measure what is not there yet, and write tables."""
    rows = rows_there(f"budgets_{kind}")
    names = Cell.__dataclass_fields__
    there = {Cell(**{name: row[name] for name in names}) for row in rows}
    cells, measure, title = {
        "truth": (truth_cells, measure_truth, "Rates, batches and rows on a known world"),
        "real": (real_cells, measure_real, "Rates, widths and rows on real activations"),
    }[kind]
    left = [cell for cell in cells(most) if cell not in there]
    for _, members in groupby(left, lambda cell: (cell.rows, cell.batch, cell.d_sae)):
        began, group = time.perf_counter(), list(members)
        found = measure(group)
        seconds = round((time.perf_counter() - began) / len(group), 1)
        for cell in group:
            figures = found.get(cell, {"diverged": 1.0})
            shown = {
                key: round(value, 4) for key, value in figures.items() if value is not None
            }
            rows.append({**vars(cell), **shown, "seconds": seconds})
        write_results(f"budgets_{kind}", title, rows)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
