"""Activation patching of SmolLM2: what estimates are worth, and what resuming saves.

    python -m benchmarks.patching

The pairs are one of the indirect object task and one of two landmarks. Every place is patched
exactly and estimated from gradients; passes are counted, and timed in one run. Then the figures
of behaviour of `sae eval` are computed with the blocks before the dictionary run once, and with
all of the model each time.
"""

import shutil
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import sae
from benchmarks.common import HOOK, RUN, real_rows, side_by_side, write_results
from sae.evaluation.behaviour import behaviour
from sae.models import find_site
from sae.models.load import ModelConfig, load_model
from sae.patching.cells import Cell
from sae.patching.config import PatchConfig
from sae.patching.pairs import Pair, PairText, tokenised
from sae.patching.states import Places
from sae.patching.study import Study
from sae.patching.table import correlation

PAIRS = {
    "indirect object": PairText(
        "When Mary and John went to the store, John gave a drink to",
        "When Mary and John went to the store, Mary gave a drink to",
        " Mary",
        " John",
    ),
    "landmark": PairText(
        "The Eiffel Tower is in the city of",
        "The Colosseum is in the city of",
        " Paris",
        " Rome",
    ),
}
SITES = ["residual", "mlp", "attention", "head"]
METHODS = ("plain", "relp", "ig", "norm")
PICTURES = {"ioi": "patching", "facts": "patching-facts"}


def main() -> None:
    """Write the tables of agreement and of evaluation, and the pictures of both presets."""
    agreement()
    evaluation()
    for name, picture in PICTURES.items():
        found = sae.patch(**_preset(name), run="runs/patching")
        shutil.copyfile(found.folder / "patching.png", f"docs/images/{picture}.png")


def _preset(name: str) -> dict[str, Any]:
    import yaml

    return dict(yaml.safe_load(Path(f"conf/preset/patch/{name}.yaml").read_text()))


def agreement() -> None:
    """Pearson's r with exact patching, for each kind of place in both pairs."""
    model, rows = load_model(ModelConfig()), []
    places = Places.of(model, SITES)
    for task, text in PAIRS.items():
        pair = tokenised(model, text)
        assert isinstance(pair, Pair)
        config = PatchConfig(sites=SITES, patches=["denoising"])
        found, _ = Study(config, places, None, ()).of([pair], 1)
        assert found is not None
        exact = found.effects["exact", "denoising"][0]
        spent = {next(iter(one.what.values())): one for one in found.spent}
        estimates = sum(spent[name].seconds for name in METHODS[:3])
        for site in SITES:
            own = torch.tensor([cell.site == site for cell in found.cells])
            put = found.effects["norm", "denoising"][0] > 0
            by = {m: found.effects[m, "denoising"][0].abs() if m == "norm" else
                  found.effects[m, "denoising"][0] for m in METHODS}  # fmt: skip
            cost = spent[site].cost
            assert cost is not None
            rows.append(
                {"pair": task, "site": site}
                | {m: _r(exact[own], by[m][own]) for m in METHODS}
                | {f"{m}, where runs differ": _r(exact[own & put], by[m][own & put])
                   for m in METHODS}
                | {
                    "places": int(own.sum()),
                    "whole forwards": round(cost.forwards, 1),
                    "share of naive": f"{cost.forwards / cost.patched:.2f}",
                    "seconds, exact": round(spent[site].seconds, 1),
                    "seconds, all estimates of all sites": round(estimates, 1),
                    "strongest": _strongest(found.cells, exact, site),
                }
            )  # fmt: skip
    title = "Estimates of activation patching on SmolLM2 (denoising): Pearson's r with exact"
    write_results("patching", title, rows)


def _r(a: torch.Tensor, b: torch.Tensor) -> str:
    found = correlation(a, b)
    return "" if found is None else f"{found:.3f}"


def _strongest(cells: list[Cell], effects: torch.Tensor, site: str) -> str:
    own = [i for i, cell in enumerate(cells) if cell.site == site]
    best = max(own, key=lambda i: abs(float(effects[i])))
    cell = cells[best]
    where = f"head {cell.head}" if cell.head is not None else f"position {cell.position}"
    return f"layer {cell.layer}, {where}: {float(effects[best]):.2f}"


def evaluation() -> None:
    """Time of behaviour's figures with blocks resumed, and with all of the model each time."""
    real_rows(1)
    cache = sae.open_cache(f"{RUN}/cache.zarr")
    model = load_model(ModelConfig())
    site = find_site(model.module, HOOK)
    tokens = torch.from_numpy(cache.tokens[cache.held_out]).long()[:8]
    width = cache.d_in(HOOK)
    draw = torch.Generator().manual_seed(0)
    matrix = torch.eye(width) + torch.randn(width, width, generator=draw) / width
    dictionaries = {"linear": lambda x: x @ matrix}
    found = {}

    def measure(name: str) -> None:
        found[name] = behaviour(model, site, tokens, dictionaries, torch.zeros(width))

    def whole() -> None:
        with patch("sae.models.resume.can_resume", lambda *_: False):
            measure("whole")

    began = time.perf_counter()
    seconds = side_by_side({"resumed": lambda: measure("resumed"), "whole": whole}, 3)
    assert found["resumed"] == found["whole"]
    row = {
        "site": HOOK,
        "tokens": tokens.numel(),
        "seconds, whole model each time": round(seconds["whole"], 2),
        "seconds, resumed": round(seconds["resumed"], 2),
        "saved": f"{1 - seconds['resumed'] / seconds['whole']:.0%}",
        "figures": "the same to the bit",
    }
    print(f"{time.perf_counter() - began:.0f} s")
    write_results("resume", "Figures of behaviour, with the first blocks run once", [row])


if __name__ == "__main__":
    main()
