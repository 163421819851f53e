"""Shuffled rows from a cache, beside SAELens's store, and how long training waits for them."""

import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

import sae
from benchmarks.common import HOOK, RUN, medians, write_results
from benchmarks.saelens_cache import saelens_rows_per_second
from sae.cache.layout import ActivationCache
from sae.core.scaling import InputScaling
from sae.exchange.activations import export_to_hf
from sae.rows.shuffle import Rows, rows_in_order, select_rows, shuffled_batches
from sae.training.loop import Trainer
from sae.training.optim import OptimConfig

N_TOKENS = 204_800
BATCH = 4096
ROUNDS = 5


def main() -> None:
    """GB/s and rows/s with pools of several sizes, SAELens's rows/s, and the time waited."""
    cache = sae.harvest(run=f"{RUN}/reading", hook_names=[HOOK], n_tokens=N_TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "saelens"
        export_to_hf(cache, exported)
        n_sequences = 32 * 8
        times = medians(
            {
                "ours, all in one pool": lambda: _seconds_a_row(cache, 2 << 30),
                "ours, 64 MB pools": lambda: _seconds_a_row(cache, 64 << 20),
                "ours, all in one pool, as float32": lambda: _seconds_a_row(
                    cache, 2 << 30, torch.float32
                ),
                "SAELens, its smallest buffer": lambda: (
                    1 / saelens_rows_per_second(exported, 576, HOOK, BATCH, 30)
                ),
                f"SAELens, mixing {n_sequences * 128:,} rows": lambda: (
                    1
                    / saelens_rows_per_second(
                        exported, 576, HOOK, BATCH, 30, n_batches_in_buffer=n_sequences
                    )
                ),
            },
            ROUNDS,
        )
    best = min(times["SAELens, its smallest buffer"], list(times.values())[-1])
    rows: list[dict[str, object]] = [
        {
            "what": name,
            "rows/s": round(1 / seconds),
            "GB/s of float16 rows": round(576 * 2 / seconds / 1e9, 2),
            "over SAELens's best": round(best / seconds, 1),
        }
        for name, seconds in times.items()
    ]
    write_results("reading", f"Shuffled batches of {BATCH} rows of 576, warm", rows)
    waiting(cache)


def _seconds_a_row(
    cache: ActivationCache, pool_bytes: int, dtype: torch.dtype | None = None
) -> float:
    """Over three epochs, opening and reading the files of the first included."""
    rows = select_rows(cache, HOOK, held_out=False)
    n = 3 * rows.n_rows // BATCH
    batches = shuffled_batches(rows, BATCH, seed=0, pool_bytes=pool_bytes)
    began = time.perf_counter()
    for (batch,) in islice(batches, n):
        if dtype is not None:
            batch.to(dtype)
    return (time.perf_counter() - began) / (n * BATCH)


def waiting(cache: ActivationCache) -> None:
    """Return the share of an epoch's time in which a training waits for its rows."""
    selection = select_rows(cache, HOOK, held_out=False)
    sample = torch.cat([x for (x,) in rows_in_order(selection, limit=16_384)]).float()
    scaling = InputScaling.of(sample)
    found: list[dict[str, object]] = []
    for pool_bytes in (2 << 30, 64 << 20):
        config = sae.TopKConfig(d_sae=9216, k=32)
        autoencoder = config.build(scaling(sample), torch.Generator().manual_seed(0))
        n_steps = selection.n_rows // BATCH
        trainer = Trainer(
            autoencoder,
            scaling,
            OptimConfig(),
            lr=config.default_lr,
            n_steps=n_steps,
            dead_window_rows=10**9,
        )
        waited = [0.0]
        batches = _clocked(
            shuffled_batches(selection, BATCH, seed=0, pool_bytes=pool_bytes), waited
        )
        began = time.perf_counter()
        for batch in islice(batches, n_steps):
            trainer.update(*trainer.scaled(batch))
        seconds = time.perf_counter() - began
        found.append(
            {
                "pool MB": pool_bytes >> 20,
                "steps": n_steps,
                "seconds": round(seconds, 1),
                "waited": f"{waited[0] / seconds:.2%}",
            }
        )
    write_results("waiting", "An epoch of TopK at d_sae 9,216: time waiting for rows", found)


def _clocked(batches: Iterator[Rows], waited: list[float]) -> Iterator[Rows]:
    while True:
        began = time.perf_counter()
        batch = next(batches)
        waited[0] += time.perf_counter() - began
        yield batch


if __name__ == "__main__":
    main()
