"""What each way to store rows costs: bytes, time, and a dictionary's loss by them."""

import shutil
import time
from pathlib import Path

import numpy as np
import torch

import sae
from benchmarks.common import HOOK, RUN, write_results
from sae.cache.create import create_cache
from sae.cache.layout import ActivationCache, chunk_slices, open_cache
from sae.cache.store import stored_bytes
from sae.cache.text_writer import write_text
from sae.core.fidelity import ReconstructionStatistics
from sae.dictionary import Dictionary, add_reconstruction
from sae.models import Site
from sae.rows.shuffle import rows_in_order, select_rows
from sae.text.packing import RowBlock, TextPlan

N_TOKENS = 204_800
TRAINING_TOKENS = 512_000
SEEDS = (0, 1)
WAYS = [("float32", "none"), ("float16", "none"), ("bfloat16", "none"), ("int8", "none")]
WAYS += [("float32", "zstd"), ("float16", "zstd"), ("bfloat16", "zstd"), ("int8", "zstd")]


def main() -> None:
    """Size, speed, error and explained variance, all against the rows as float32."""
    exact = sae.harvest(
        run=f"{RUN}/exact", hook_names=[HOOK], n_tokens=N_TOKENS, dtype="float32"
    )
    rows: list[dict[str, object]] = []
    sizes: dict[str, int] = {}
    explained: dict[str, float] = {}
    for dtype, compression in WAYS:
        run = RUN / "storage" / f"{dtype}-{compression}"
        shutil.rmtree(run, ignore_errors=True)
        began = time.perf_counter()
        cache = _copied(exact, run / "cache.zarr", dtype, compression)
        writing = time.perf_counter() - began
        sizes[f"{dtype} {compression}"] = stored_bytes(cache.location)
        row: dict[str, object] = {
            "dtype": dtype,
            "compression": compression,
            "write rows/s": round(N_TOKENS / writing),
            "read rows/s": round(N_TOKENS / _reading_seconds(cache)),
        }
        if compression == "none":
            row["error / variance"] = f"{_error(exact, cache):.1e}"
            explained[dtype] = float(np.mean([_explained(exact, run, seed) for seed in SEEDS]))
            row["explained variance"] = round(explained[dtype], 4)
        rows.append(row)
    for row in rows:
        size = sizes[f"{row['dtype']} {row['compression']}"]
        row["MB"] = round(size / 1e6, 1)
        row["of float16"] = round(size / sizes["float16 none"], 3)
        if row["compression"] == "none":
            loss = 1 - explained[str(row["dtype"])] / explained["float16"]
            row["loss against float16"] = f"{loss:.3%}"
    write_results("storage", f"Ways to store {N_TOKENS:,} rows of 576", rows)


def _copied(
    exact: ActivationCache, path: Path, dtype: str, compression: str
) -> ActivationCache:
    """Return the same rows stored in another way."""
    held_out = exact.held_out
    plan = TextPlan(int((~held_out).sum()), int(held_out.sum()), exact.context_size)
    about = {
        key: exact.attributes[key]
        for key in [
            "digest",
            "model",
            "tokenizer_digest",
            "data",
            "bos_token_id",
            "special_token_ids",
            "code_version",
        ]
    }
    hook = Site(HOOK, "model.layers.9", "output", exact.d_in(HOOK))
    writer = create_cache(
        path, [hook], plan, dtype=dtype, compression=compression, attributes=about
    )
    tokens, documents = exact.tokens, exact.documents
    blocks = (
        RowBlock(side, tokens[held_out == side], documents[held_out == side])
        for side in (False, True)
    )
    write_text(writer, blocks, lambda: np.zeros(int(documents.max()) + 1, np.uint64))
    for chunk in writer.chunks():
        writer.write(chunk, {HOOK: exact.read(HOOK, chunk)})
    writer.finish()
    return open_cache(path)


def _reading_seconds(cache: ActivationCache) -> float:
    def all_of_it() -> float:
        began = time.perf_counter()
        for chunk in cache.chunks(HOOK):
            cache.read(HOOK, chunk).sum()
        return time.perf_counter() - began

    return sorted(all_of_it() for _ in range(4))[1]


def _error(exact: ActivationCache, stored: ActivationCache) -> float:
    """Squared error over the variance of the rows that are trained on."""
    rows = select_rows(exact, HOOK, held_out=False)
    total = 0.0
    for part in chunk_slices(exact.n_sequences, 64):
        x, y = (c.read(HOOK, part).double() for c in (exact, stored))
        keep = torch.from_numpy(rows.keep[part])
        total += float((x - y)[keep].square().sum())
    return total / rows.n_rows / float(exact.statistics(HOOK)["variance"].sum())


def _explained(exact: ActivationCache, run: Path, seed: int) -> float:
    """Return what a dictionary that was trained on rows as stored explains of exact ones."""
    dictionary: Dictionary = sae.train(
        run=str(run),
        name=f"seed-{seed}",
        sae=sae.TopKConfig(d_sae=2304, k=32),
        training_tokens=TRAINING_TOKENS,
        seed=seed,
    )
    statistics = ReconstructionStatistics(dictionary.W_dec.shape[1], dictionary.W_dec.shape[0])
    with torch.inference_mode():
        for (x,) in rows_in_order(select_rows(exact, HOOK, held_out=True)):
            add_reconstruction(statistics, dictionary, x, x)
    return float(statistics.metrics()["explained_variance"])


if __name__ == "__main__":
    main()
