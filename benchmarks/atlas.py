"""The analysis of every feature beside the encoder's product alone, and SAEDashboard."""

import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import sae
from benchmarks import dashboard
from benchmarks.common import HOOK, write_results
from sae.atlas import Atlas
from sae.core.screen import product_blocks
from sae.models import ModelConfig, load_model
from sae.models.unembed import unembedding

RUN = Path("runs/bench/atlas")
QUARTER = Path("runs/bench/atlas-quarter")
D_SAE, N_TOKENS = 16_384, 1_000_000
TRAINED = {
    "topk": sae.TopKConfig(d_sae=D_SAE, k=32),
    "jumprelu": sae.BatchTopKConfig(d_sae=D_SAE, k=48),
}
ROUNDS = 2
BATCH = list(range(0, D_SAE, D_SAE // 128))
"""128 features, spread over the dictionary."""


def _prepare() -> None:
    sae.harvest(run=str(RUN), hook_names=[HOOK], n_tokens=N_TOKENS)
    sae.harvest(run=str(QUARTER), hook_names=[HOOK], n_tokens=N_TOKENS // 4)
    sae.sweep(
        sae.TrainConfig(run=str(RUN), name=name, sae=config, training_tokens=800_000)
        for name, config in TRAINED.items()
    )
    for name in TRAINED:
        target = QUARTER / "dictionaries" / name
        shutil.copytree(RUN / "dictionaries" / name, target, dirs_exist_ok=True)


def _product(name: str) -> float:
    """Seconds of the encoder's products of all rows alone, as fast as torch does them."""
    cache = sae.open_cache(RUN / "cache.zarr")
    dictionary = sae.load(str(RUN / "dictionaries" / name))
    weight, keep = dictionary.W_enc.t().contiguous(), torch.from_numpy(cache.text_rows())
    seconds = 0.0
    for chunk in cache.chunks(HOOK):
        x = cache.read(HOOK, chunk)[keep[chunk]].float()
        began = time.perf_counter()
        for _ in product_blocks(x, weight):
            pass
        seconds += time.perf_counter() - began
    return seconds


def _analysis(run: Path, name: str) -> tuple[float, float]:
    """Seconds and peak GB of the whole command, with the model and the pages."""
    shutil.rmtree(run / "atlas" / name, ignore_errors=True)
    words = [sys.executable, "-m", "sae.cli", "analyze", f"run={run}", f"dictionary={name}"]
    began = time.perf_counter()
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(words)} failed")
    return time.perf_counter() - began, usage.ru_maxrss / 1e6


def _speed() -> list[dict[str, object]]:
    rows = []
    for name in TRAINED:
        products, analyses = [], []
        for _ in range(ROUNDS):
            products.append(_product(name))
            analyses.append(_analysis(RUN, name))
        product = statistics.median(products)
        seconds = statistics.median(s for s, _ in analyses)
        _, quarter = _analysis(QUARTER, name)
        atlas = Atlas(RUN / "atlas" / name)
        features = atlas.features()
        n_active = sum(row["n_active"] for row in features)
        size = sum(p.stat().st_size for p in atlas.folder.rglob("*") if p.is_file())
        rows.append(
            {
                "dictionary": name,
                "L0": round(n_active / atlas.record.n_rows, 1),
                "tokens": f"{atlas.record.n_rows:,}",
                "product alone (s)": round(product, 1),
                "whole command (s)": round(seconds, 1),
                "of the product's speed": f"{product / seconds:.0%}",
                "peak memory (GB)": round(max(m for _, m in analyses), 2),
                "the same on a quarter of the tokens (GB)": round(quarter, 2),
                "atlas (MB)": round(size / 1e6),
            }
        )
        print(rows[-1], flush=True)
    return rows


def _prompts(name: str) -> dict[str, int]:
    """Prompts in a minibatch of SAEDashboard: its default, and the fastest that was found."""
    # It encodes all latents of a TopK dictionary, densely: 256 prompts, 2.1 GB, took longer.
    return {"its default": 32} if name == "topk" else {"its default": 32, "at its best": 1024}


def _peer(name: str, ours: float, matrix: torch.Tensor) -> list[dict[str, object]]:
    cache = sae.open_cache(RUN / "cache.zarr")
    activations = cache.read(HOOK, slice(0, cache.n_sequences))
    tokens = torch.from_numpy(cache.tokens).long()
    rows = []
    for setting, prompts in _prompts(name).items():
        folder = RUN / "dashboard"
        shutil.rmtree(folder, ignore_errors=True)
        dashboard.cache_activations(activations, HOOK, folder, prompts)
        began = time.perf_counter()
        data = dashboard.dashboards(
            RUN / "dictionaries" / name,
            matrix,
            tokens,
            BATCH,
            folder,
            ignore_tokens=set(cache.attributes["special_token_ids"]),
            minibatch_size_tokens=prompts,
            minibatch_size_features=len(BATCH),
        )
        theirs = (time.perf_counter() - began) / len(BATCH)
        rows.append(
            {
                "dictionary": name,
                "SAEDashboard": setting,
                "prompts a minibatch": prompts,
                "SAEDashboard (s a feature)": round(theirs, 4),
                "ours (s a feature)": round(ours, 4),
                "times": round(theirs / ours, 1),
                **_agreement(name, dashboard.found(data)),
            }
        )
        print(rows[-1], flush=True)
        shutil.rmtree(folder)
    return rows


def _agreement(name: str, theirs: dict[int, dashboard.Dashboard]) -> dict[str, object]:
    """In how many of the features counts and top contexts are the same."""
    atlas = Atlas(RUN / "atlas" / name)
    features = atlas.features()
    tops: dict[int, list[tuple[int, float]]] = {}
    for row in atlas.contexts():
        if row["group"] == "top":
            tops.setdefault(row["feature"], []).append((row["sequence"], row["activation"]))
    counts = contexts = live = 0
    for feature, found in theirs.items():
        counts += found.n_active == features[feature]["n_active"]
        # Theirs may have several of a sequence; ours have one, so take the first of each.
        firsts: dict[int, float] = {}
        for (sequence, _), value in zip(found.top_places, found.top_values, strict=True):
            firsts.setdefault(sequence, value)
        norm = features[feature]["decoder_norm"]
        mine = dict(tops.get(feature, []))
        wanted = {s: v for s, v in list(firsts.items())[: len(mine)] if v > 0}
        live += bool(wanted)
        same = all(
            abs(mine.get(s, 0.0) * norm - v) < 1e-3 * v + 1e-3 for s, v in wanted.items()
        )
        contexts += same and bool(wanted)
    return {
        "same number of active tokens": f"{counts} of {len(theirs)}",
        "same top contexts": f"{contexts} of {live} live",
    }


def main() -> None:
    """Write `results/atlas.md` and `results/atlas_dashboard.md`."""
    _prepare()
    speed = _speed()
    write_results(
        "atlas", f"Analysis of {D_SAE:,} features over a million cached tokens", speed
    )
    matrix = unembedding(load_model(ModelConfig()).module)
    assert matrix is not None
    rows = []
    for one in speed:
        ours = float(str(one["whole command (s)"])) / D_SAE
        rows += _peer(str(one["dictionary"]), ours, matrix)
    write_results("atlas_dashboard", "The same beside SAEDashboard 0.8.0, 128 features", rows)


if __name__ == "__main__":
    main()
