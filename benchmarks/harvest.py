"""Harvest against the bare forward that it cannot do without, and against SAELens's."""

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import sae
from benchmarks.common import HOOK, medians, write_results
from benchmarks.saelens_cache import ROWS_A_BATCH, saelens_harvest
from sae.harvesting import harvest as harvesting
from sae.harvesting.config import HarvestConfig
from sae.models import LanguageModel, ModelConfig, find_site, load_model, read_activations
from sae.text.source import DataConfig, documents

N_TOKENS, CONTEXT, ROUNDS = 16_384, 128, 3
HOOKS = [HOOK, "blocks.7.hook_resid_post", "blocks.8.hook_mlp_out", "blocks.9.hook_attn_out"]
DATA = DataConfig(name="factbook")


def main() -> None:
    """Tokens a second by turns: bare forward, one hook, four hooks, SAELens; and memory."""
    model = load_model(ModelConfig())
    # Loaded once for all of them; what is timed begins with the first batch.
    with patch.object(harvesting, "load_model", lambda _: model):
        rows = _rows(model)
    write_results("harvest", "Harvest of SmolLM2-135M at layer 9 to disk", rows)
    memory()


def _rows(model: LanguageModel) -> list[dict[str, object]]:
    folder = Path(tempfile.mkdtemp())
    tokens = torch.from_numpy(
        sae.harvest(**_settings(folder / "text", [HOOK], n_tokens=N_TOKENS)).tokens
    ).long()
    texts = [text for text in documents(DATA) if isinstance(text, str)]

    def bare(names: list[str], rows_a_batch: int) -> float:
        points = [find_site(model.module, name) for name in names]
        began = time.perf_counter()
        for batch in torch.split(tokens, rows_a_batch):
            read_activations(model.module, points, batch)
        return time.perf_counter() - began

    def saelens() -> float:
        target = folder / "saelens"
        shutil.rmtree(target, ignore_errors=True)
        return saelens_harvest(texts, "model.layers.9", N_TOKENS, CONTEXT, target).harvesting

    batch = HarvestConfig().sequences_a_batch(model.device)
    times = medians(
        {
            "bare forward to layer 9": lambda: bare([HOOK], batch),
            "harvest, one hook": lambda: _harvest(folder / "one", [HOOK]),
            "harvest, four hooks": lambda: _harvest(folder / "four", HOOKS),
            f"SAELens, one hook, {ROWS_A_BATCH} rows a batch": saelens,
        },
        ROUNDS,
    )
    reference, one, four, theirs = times.values()
    rows: list[dict[str, object]] = []
    for name, seconds in times.items():
        row: dict[str, object] = {"what": name, "tokens/s": round(N_TOKENS / seconds)}
        row["share of bare forward"] = round(reference / seconds, 3)
        rows.append(row)
    rows[2]["share of one hook"] = round(one / four, 3)
    rows[3]["ours over it"] = f"{theirs / one:.2f}, four hooks {4 * theirs / four:.2f}"
    shutil.rmtree(folder)
    return rows


def _settings(run: Path, hook_names: list[str], n_tokens: int) -> dict[str, Any]:
    return {
        "run": str(run),
        "data": DATA,
        "hook_names": hook_names,
        "n_tokens": n_tokens,
        "context_size": CONTEXT,
    }


def _harvest(run: Path, hook_names: list[str]) -> float:
    """Seconds from the first batch to a finished cache whose text was there."""
    settings = _settings(run, hook_names, N_TOKENS)
    if not run.exists():
        sae.harvest(**settings)
    for kind in ("activations", "norms", "moments"):
        for file in (run / "cache.zarr" / kind).rglob("c.*"):
            file.unlink()
    began: list[float] = []
    original = harvesting._fill

    def fill(*given: Any) -> None:
        began.append(time.perf_counter())
        original(*given)

    with patch.object(harvesting, "_fill", fill):
        sae.harvest(**settings)
    return time.perf_counter() - began[0]


def memory() -> None:
    """Peak of memory of whole processes that harvest caches of different lengths."""
    rows: list[dict[str, object]] = []
    for n_tokens in (8_192, 32_768, 131_072):
        with tempfile.TemporaryDirectory() as run:
            words = [f"run={run}", "data=factbook", f"n_tokens={n_tokens}"]
            program = "import sys; from sae.cli import main; sys.exit(main(sys.argv[1:]))"
            subprocess.run([sys.executable, "-c", program, "harvest", *words], check=True)
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        # The system tells the largest of all children so far; the longest comes last.
        rows.append({"tokens": n_tokens, "peak MB": round(peak / 1024)})
    write_results("harvest_memory", "Peak memory of a harvest of SmolLM2-135M", rows)


if __name__ == "__main__":
    main()
