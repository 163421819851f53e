"""Recipes tried at equal rows and sparsity: each beside the plain recipe that it changes.

SmolLM2 at layer 9, d_sae 2,304, k or target L0 32, 400,000 rows, three seeds, trained from the
same batches and measured on the same held-out rows. The difference to the plain recipe is
paired by seed, with Student's interval over seeds. `config_of` makes a recipe of any width and
sparsity, for trials on other rows.
"""

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from scipy.stats import t as student

import sae
from benchmarks.common import HOOK, write_results
from sae.architectures import ARCHITECTURES, ArchitectureConfig
from sae.cache.layout import ActivationCache, open_cache
from sae.core.matching import match_directions
from sae.dictionary import Dictionary, TopK
from sae.evaluation.held_out import measured_rows, reconstruction
from sae.run import Run
from sae.training.config import SweepConfig, TrainConfig

RUN = Path("runs/recipes")
D_SAE, K, N_ROWS = 2_304, 32, 400_000
SEEDS = (1, 2, 3)
EVAL_ROWS = 8_192
OTHER_KS = (4, 8, 16)
# Recipes, of all seeds, that one pass over the rows trains.
AT_ONCE = 4
# SynthSAEBench's recipes fall from 60 to 25 and from 80 to 25.
FIRST_K = 3


@dataclass(frozen=True)
class Recipe:
    """What `sae train` is asked for, beside width and sparsity."""

    architecture: str
    plain: str
    """The recipe that it is compared with; its own name if it is a plain one."""
    settings: dict[str, Any] = field(default_factory=dict)
    falling: bool = False
    """Whether k falls to its value."""
    divide: int = 1
    """How many times smaller k is than asked for."""


_MATRYOSHKA = ("matryoshka_batchtopk", "matryoshka")
_DETACH, _SORT = {"detach_inner": True}, {"sort_by_frequency": True}
RECIPES = {
    "topk": Recipe("topk", "topk"),
    "topk-aligned": Recipe("topk", "topk", {"aligned": True}),
    "topk-falling": Recipe("topk", "topk", falling=True),
    # What a hierarchical one with all of k is to be compared with at a smaller k.
    "topk-quarter": Recipe("topk", "topk-quarter", divide=4),
    "topk-eighth": Recipe("topk", "topk-eighth", divide=8),
    "hierarchical": Recipe("hierarchical_topk", "topk"),
    "hierarchical-doubling": Recipe("hierarchical_topk", "topk", {"ks": "doubling"}),
    "ordered": Recipe("ordered_topk", "topk"),
    "batchtopk": Recipe("batchtopk", "batchtopk"),
    "batchtopk-falling": Recipe("batchtopk", "batchtopk", falling=True),
    "matryoshka": Recipe(*_MATRYOSHKA),
    "matryoshka-falling": Recipe(*_MATRYOSHKA, falling=True),
    "matryoshka-detached": Recipe(*_MATRYOSHKA, _DETACH),
    "matryoshka-sorted": Recipe(*_MATRYOSHKA, _SORT),
    "matryoshka-detached-sorted": Recipe(*_MATRYOSHKA, _DETACH | _SORT),
    "matryoshka-all": Recipe(*_MATRYOSHKA, _DETACH | _SORT, falling=True),
    "jumprelu": Recipe("jumprelu", "jumprelu"),
    "jumprelu-often-10": Recipe("jumprelu", "jumprelu", {"frequency_coefficient": 10.0}),
    "jumprelu-often-100": Recipe("jumprelu", "jumprelu", {"frequency_coefficient": 100.0}),
}


def config_of(name: str, d_sae: int, k: int) -> ArchitectureConfig:
    """Return a recipe at a width and a sparsity: `k`, or an L0 of as much."""
    recipe = RECIPES[name]
    k = max(1, k // recipe.divide)
    settings = dict(recipe.settings)
    if settings.get("ks") == "doubling":
        settings["ks"] = [2**i for i in range((k - 1).bit_length())]
    if recipe.falling:
        settings["initial_k"] = min(d_sae, FIRST_K * k)
    sparsity = {"k": k} if "topk" in recipe.architecture else {"target_l0": float(k)}
    return ARCHITECTURES[recipe.architecture](d_sae=d_sae, **sparsity, **settings)


def train(names: Sequence[str], run: Path = RUN) -> None:
    """Train recipes side by side, those that are not there; evaluating them is left."""
    sae.sweep(
        TrainConfig(
            run=str(run),
            name=f"{name}-seed-{seed}",
            sae=config_of(name, D_SAE, K),
            training_tokens=N_ROWS,
            seed=seed,
            sweep=SweepConfig(evaluate=False),
        )
        for name in names
        for seed in SEEDS
    )


def measure(run: Path = RUN) -> dict[str, dict[str, float]]:
    """Measure every dictionary of the run that is not yet, and return all figures by name."""
    path = run / "recipes.json"
    found: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    cache = open_cache(str(run / "cache.zarr"))
    for name in Run.at(run).dictionary_names:
        if name not in found and name.rsplit("-seed-", 1)[0] in RECIPES:
            found[name] = _figures(sae.load(str(Run.at(run).dictionary(name))), cache)
            path.write_text(json.dumps(found, indent=1))
            print(name, found[name], flush=True)
    return found


def _figures(dictionary: Dictionary, cache: ActivationCache) -> dict[str, float]:
    rows, ready = measured_rows(dictionary, cache, held_out=True), dictionary.to("cpu")
    counted = reconstruction(ready, rows, EVAL_ROWS)
    measured = counted.metrics()
    found = {key: measured[key] for key in ("explained_variance", "l0", "dead_fraction")}
    found["often"] = float((counted.fired > 0.1 * counted.n_rows).sum())
    if isinstance(dictionary.activation, TopK):
        for k in OTHER_KS:
            at = reconstruction(ready.with_k(k), rows, EVAL_ROWS).metrics()
            found[f"explained_variance at k={k}"] = at["explained_variance"]
    return found


def agreement(run: Path, name: str) -> list[float]:
    """Return the mean cosine of matched decoder directions, for each pair of seeds."""
    path, there = run / "agreement.json", Run.at(run)
    known: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}
    if name not in known:
        seeds = [sae.load(str(there.dictionary(f"{name}-seed-{seed}"))).W_dec for seed in SEEDS]
        pairs = combinations(seeds, 2)
        known[name] = [match_directions(a, b, signed=True).mean for a, b in pairs]
        path.write_text(json.dumps(known, indent=1))
    return known[name]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of a few values and the half width of Student's 95% interval."""
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), float(half)


def table(run: Path = RUN) -> list[dict[str, object]]:
    """Return a line for each recipe of which all seeds are measured."""
    found, groups = measure(run), defaultdict[str, list[dict[str, float]]](list)
    for name in RECIPES:
        keys = [f"{name}-seed-{seed}" for seed in SEEDS]
        groups[name] = [found[key] for key in keys if key in found]
    rows = []
    for name, members in groups.items():
        plain = groups[RECIPES[name].plain]
        if len(members) < len(SEEDS) or len(plain) < len(SEEDS):
            continue
        row: dict[str, object] = {"recipe": name, "L0": _shown(members, "l0", 1)}
        row["explained variance"] = _shown(members, "explained_variance", 4)
        row["against plain"] = "" if name == RECIPES[name].plain else _against(members, plain)
        row["dead on held-out rows"] = _shown(members, "dead_fraction", 3)
        row["latents on more than 10% of rows"] = _shown(members, "often", 1)
        mean, half = interval(agreement(run, name))
        row["cosine between seeds"] = f"{mean:.3f} ± {half:.3f}"
        for k in OTHER_KS:
            row[f"explained variance at k={k}"] = _shown(
                members, f"explained_variance at k={k}", 4
            )
        rows.append(row)
    return rows


def _shown(members: Sequence[dict[str, float]], key: str, digits: int) -> str:
    if key not in members[0]:
        return ""
    mean, half = interval([one[key] for one in members])
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def _against(members: Sequence[dict[str, float]], plain: Sequence[dict[str, float]]) -> str:
    key = "explained_variance"
    pairs = zip(members, plain, strict=True)
    mean, half = interval([one[key] - other[key] for one, other in pairs])
    return f"{mean:+.4f} ± {half:.4f}"


def main(names: Sequence[str] = tuple(RECIPES)) -> None:
    """Train, measure, and write the table."""
    if not (RUN / "cache.zarr").exists():
        sae.harvest(run=str(RUN), hook_names=[HOOK], n_tokens=448_000)
    for first in range(0, len(names), AT_ONCE):
        train(names[first : first + AT_ONCE])
    write()


def write(run: Path = RUN) -> None:
    """Write the table of what is trained so far."""
    title = f"Recipes, d_sae {D_SAE:,}, {N_ROWS:,} rows: mean of {len(SEEDS)} seeds ± half of "
    title += f"Student's 95% interval, {EVAL_ROWS:,} held-out rows"
    write_results("recipes", title, table(run))


if __name__ == "__main__":
    main(sys.argv[1:] or tuple(RECIPES))
