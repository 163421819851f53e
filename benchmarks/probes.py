"""What probes find in SmolLM2, what they cost beside the forward pass, and beside sae-probes.

    python -m benchmarks.probes [DICTIONARY]

Five data sets at all 30 blocks, and all of the wheel's that have two labels at one, both at
64 texts to fit to and 64 to test on; then the same rows through sae-probes' own logistic
regression. Without the folder of a dictionary at block 9, one is trained first.
"""

import importlib.util
import os
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import sae
from benchmarks.common import HOOK, RUN, write_results
from sae.base.assets import package_folder
from sae.classifiers import fit_logistic_path, score
from sae.models import load_model
from sae.probing.config import ProbeConfig
from sae.probing.readings import dictionary_site, random_control, readings_of, wanted_sites
from sae.probing.tasks import read_task
from sae.rows.pooled import keep_pooled_rows
from sae.run import Run
from sae.text.embedded import SAE_PROBES

FIVE = (
    "5_hist_fig_ismale",
    "105_click_bait",
    "126_art_type_book",
    "87_glue_cola",
    "113_movie_sent",
)
N = int(os.environ.get("PROBES_N", "64"))
"""Texts to fit to, and as many to test on."""
N_TASKS = int(os.environ.get("PROBES_TASKS", "0"))
"""Of all data sets the first so many; 0 is all."""
LAYERS = (0, 9, 14, 29)
"""Blocks whose probes have a line each; all 30 are measured."""


def main() -> None:
    """Probe, time, and write three tables."""
    dictionary = sys.argv[1] if len(sys.argv) > 1 else trained()
    curves(dictionary)
    every(dictionary)
    beside_sae_probes(dictionary)


def trained() -> str:
    """Train an L1 dictionary at block 9, or find it again."""
    sae.harvest(run=str(RUN), hook_names=[HOOK], n_tokens=49_152)
    config = sae.StandardConfig(d_sae=2304, l1_coefficient=1.5)
    sae.train(run=str(RUN), name="probes", sae=config, training_tokens=500_000)
    return str(RUN / "dictionaries" / "probes")


def curves(dictionary: str) -> None:
    """Probe five data sets at all blocks; time of reading stands beside that of fitting."""
    found = sae.probe(
        run=str(RUN), name="five", tasks=[f"sae-probes:{name}" for name in FIVE],
        dictionary=dictionary, k=["1", "5", "16", "all"], pools=["last", "mean"], n_train=N,
        n_test=N,
    )  # fmt: skip
    records = found.table.to_pylist()
    rows = []
    for task in found.summary["tasks"]:
        own = [r for r in records if r["task"] == task["name"] and r["chosen"]]
        rows += [
            {"task": task["name"].partition(":")[2], **_line(record)}
            for record in own
            if record["best"] or (record["layer"] in LAYERS and record["inputs"] == "raw")
        ]
        spent, fits = task["read_seconds"], task["fit_seconds"]
        n = sum(r["task"] == task["name"] for r in records)
        rows.append(
            {
                "task": task["name"].partition(":")[2],
                "inputs": "time",
                "hook": f"{task['n_tokens']:,} tokens read in {spent:.1f} s, {n} probes with "
                f"controls in {fits:.1f} s: {fits / spent:.0%} of the forward pass",
            }
        )
    title = f"Probes of SmolLM2 at 30 blocks, {N} texts to fit to and {N} to test on"
    write_results("probes", title, rows)


def every(dictionary: str) -> None:
    """Probe all data sets of two labels at one block."""
    names = _every_name()
    found = sae.probe(
        run=str(RUN), name="every", tasks=[f"sae-probes:{name}" for name in names],
        hooks=[HOOK], dictionary=dictionary, k=["1", "5", "16", "all"], pools=["last"],
        n_train=N, n_test=N, causal=False,
    )  # fmt: skip
    tasks, records = found.summary["tasks"], found.table.to_pylist()
    kinds = dict.fromkeys((r["inputs"], r["k"]) for r in records)
    raw = {r["task"]: r["auc"] for r in records if r["inputs"] == "raw"}
    rows: list[dict[str, object]] = []
    for inputs, k in kinds:
        own = {r["task"]: r for r in records if (r["inputs"], r["k"]) == (inputs, k)}
        aucs = np.array([r["auc"] for r in own.values()])
        gains = np.array([r["auc"] - raw[name] for name, r in own.items()])
        half = 1.96 * gains.std(ddof=1) / len(gains) ** 0.5
        rows.append(
            {
                "inputs": inputs,
                "k": k or "all",
                "mean AUC": f"{aucs.mean():.3f}",
                "less raw, 95%": f"{gains.mean():+.3f} ± {half:.3f}",
                "better than raw": f"{(gains > 0).sum()} of {len(gains)}",
                "shuffled": f"{np.mean([r['permuted_auc'] for r in own.values()]):.3f}",
            }
        )
    spent = sum(t["read_seconds"] for t in tasks)
    fits = sum(t["fit_seconds"] for t in tasks)
    title = (
        f"{len(tasks)} data sets at {HOOK}, {N} and {N} texts each: read in {spent:.0f} s, "
        f"{len(records)} probes with controls in {fits:.0f} s: {fits / spent:.0%} of the "
        "forward pass"
    )
    write_results("probes_every", title, rows)


def beside_sae_probes(dictionary: str) -> None:
    """Time both packages' logistic regressions on the same rows, and compare what they find."""
    peer, rows = _peer(), list[dict[str, object]]()
    # What is imported at the first call is nobody's time.
    x, y = np.random.default_rng(0).normal(size=(80, 8)), np.arange(80) % 2
    for fit in (_own, peer.find_best_reg):
        fit(x[:60], y[:60], x[60:], y[60:])
    for names, n, own in ((_every_name(), N, dictionary), (FIVE, 4 * N, None)):
        times, aucs = list[tuple[float, float]](), list[tuple[float, float]]()
        for x, y in _raw_rows(names, n, own):
            train, test = slice(0, len(x) - N), slice(len(x) - N, None)
            data = x[train], y[train], x[test], y[test]
            ours, found = _timed(partial(_own, *data))
            theirs, best = _timed(partial(peer.find_best_reg, *data))
            times.append((ours, theirs))
            aucs.append((found, best.metrics.test_auc))
        (mine, other), means = np.sum(times, axis=0), np.mean(aucs, axis=0)
        gains = np.array([a - b for a, b in aucs])
        half = 1.96 * gains.std(ddof=1) / len(gains) ** 0.5
        rows.append(
            {
                "data sets": len(aucs),
                "texts to fit to": f"up to {n}",
                "ours, s": f"{mine:.1f}",
                "sae-probes, s": f"{other:.1f}",
                "quicker": f"{other / mine:.0f} ×",
                "mean AUC, ours": f"{means[0]:.3f}",
                "theirs": f"{means[1]:.3f}",
                "ours less theirs, 95%": f"{gains.mean():+.3f} ± {half:.3f}",
            }
        )
    title = (
        "Logistic regression with its penalty chosen, on the same rows: ours and sae-probes'"
    )
    write_results("probes_speed", title, rows)


def _own(x: Any, y: Any, x_test: Any, y_test: Any) -> float:
    return score(
        fit_logistic_path(x, y.astype(bool)).logits(x_test), y_test.astype(bool)
    ).auc.mean


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def _raw_rows(
    names: Sequence[str], n: int, dictionary: str | None
) -> Iterator[tuple[Any, Any]]:
    """Give rows of data sets at one block, those to test on last, and labels.

    With the dictionary of `every` they are those that it has read.
    """
    model = load_model(sae.ModelConfig())
    config = ProbeConfig(
        run=str(RUN), tasks=[f"sae-probes:{name}" for name in names], n_train=n, n_test=N,
        pools=["last"], hooks=[HOOK],
    )  # fmt: skip
    tasks = [read_task(name, config) for name in config.tasks]
    sites = wanted_sites(model.module, config)
    tokens = [task.tokens(model, config.max_tokens) for task in tasks]
    readings = readings_of(sites, None, None, None, model.device)
    if dictionary is not None:
        own = sae.load(dictionary)
        at = dictionary_site(model.module, dictionary, own, sites)
        control = random_control(own, model, at, tokens[0].texts, config.seed)
        readings = readings_of(sites, at, own, control, model.device)
    for task, texts in zip(tasks, tokens, strict=True):
        rows = keep_pooled_rows(Run.at(RUN), model, texts, readings, ["last"])
        part = slice(0, task.n_train + task.n_test)
        yield rows.of("raw", HOOK, "last")[part], task.texts.labels[part].astype(int)


def _every_name() -> Sequence[str]:
    from sae.text.labelled import sae_probes_names

    return sae_probes_names()[: N_TASKS or None]


def _peer() -> Any:
    """Return sae-probes' own module of baselines, without what else its package imports."""
    # It imports XGBoost for a baseline that is not timed here.
    sys.modules.setdefault("xgboost", types.ModuleType("xgboost"))
    place = package_folder(SAE_PROBES) / "sae_probes" / "utils_training.py"
    return _loaded(place)


def _loaded(place: Path) -> Any:
    spec = importlib.util.spec_from_file_location("sae_probes_training", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _line(record: dict[str, Any]) -> dict[str, object]:
    return {
        "inputs": record["inputs"],
        "k": record["k"] or "all",
        "hook": record["hook_name"],
        "pool": record["pool"],
        "AUC": f"{record['auc']:.2f} [{record['auc_low']:.2f}, {record['auc_high']:.2f}]",
        "shuffled": f"{record['permuted_auc']:.2f}",
    }


if __name__ == "__main__":
    main()
