"""Harvest against the bare forward that it cannot do without."""

import shutil
import tempfile
import time
from pathlib import Path

import torch

import sae
from benchmarks.common import HOOK, RUN, real_rows, write_results
from sae.models.hooks import find_hook, read_activations
from sae.models.load import ModelConfig, load_model

N_TOKENS = 16_384


def main() -> None:
    """Tokens a second: truncated forward alone, whole forward, and harvesting to disk."""
    real_rows(1)
    model = load_model(ModelConfig())
    point = find_hook(model.module, HOOK)
    cache = sae.open_cache(RUN / "cache.zarr")
    tokens = torch.from_numpy(cache.tokens[: N_TOKENS // 128]).long()
    rates: dict[str, list[float]] = {"bare forward to layer 9": [], "harvest to disk": []}
    for _ in range(3):
        began = time.perf_counter()
        for batch in torch.split(tokens, 16):
            read_activations(model.module, [point], batch)
        rates["bare forward to layer 9"].append(N_TOKENS / (time.perf_counter() - began))
        folder = Path(tempfile.mkdtemp())
        sae.harvest(run=str(folder), hook_names=[HOOK], n_tokens=N_TOKENS)
        timing = sae.stages.harvest.read_json(folder / "harvest.json")
        rates["harvest to disk"].append(timing["tokens_per_second"])
        shutil.rmtree(folder)
    best = sorted(rates["bare forward to layer 9"])[1]
    rows = [
        {
            "what": name,
            "tokens/s": round(sorted(values)[1]),
            "share of bare forward": round(sorted(values)[1] / best, 3),
        }
        for name, values in rates.items()
    ]
    write_results("harvest", "Harvest of SmolLM2-135M at layer 9", rows)


if __name__ == "__main__":
    main()
