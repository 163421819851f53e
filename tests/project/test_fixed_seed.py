"""What a small run with fixed seeds makes, to the bit: a refactoring changes nothing of it.

`recorded.json` holds digests that were taken before a refactoring, by kind of machine, as
another instruction set sums in another order. Write them anew, where figures are meant to move,
with `RECORD=1 pytest tests/project/test_fixed_seed.py`.
"""

import hashlib
import json
import os
import platform
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support.world import HOOK, harvest_settings

import sae

RECORDED = Path(__file__).with_name("recorded.json")
OUT = "blocks.1.hook_mlp_out"
MID = "blocks.1.hook_resid_mid"
RECIPES = {
    "standard": sae.StandardConfig(d_sae=64, l1_coefficient=1.0),
    "unit": sae.StandardConfig(d_sae=64, l1_coefficient=1.0, decoder_norm="unit"),
    "target": sae.StandardConfig(d_sae=64, target_l0=8),
    "p_anneal": sae.PAnnealConfig(d_sae=64),
    "gated": sae.GatedConfig(d_sae=64),
    "topk": sae.TopKConfig(d_sae=64, k=6),
    "batchtopk": sae.BatchTopKConfig(d_sae=64, k=6),
    "matryoshka": sae.MatryoshkaConfig(d_sae=64, k=6),
    "jumprelu": sae.JumpReLUConfig(d_sae=64, target_l0=8),
    "aligned": sae.TopKConfig(d_sae=64, k=6, aligned=True),
}
TRAINED = {"training_tokens": 12_800, "train_batch_size_tokens": 128}


def machine() -> str:
    """What decides in which order floating-point numbers are added."""
    facts = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = [line.partition(":") for line in facts.splitlines()]
    told = {name.strip(): value.strip() for name, _, value in reversed(lines)}
    # Of one maker with one set of instructions, families still add in orders of their own.
    which = [told.get(name, "?") for name in ("vendor_id", "cpu family", "model")]
    capability = torch.backends.cpu.get_cpu_capability()
    return " ".join([platform.machine(), *which, capability, "torch", torch.__version__])


def sha(*parts: bytes) -> str:
    state = hashlib.sha256()
    for part in parts:
        state.update(part)
    return state.hexdigest()[:16]


def of_weights(folder: Path) -> tuple[str, float]:
    """A digest of all tensors of a dictionary's file, and the sum of their squares."""
    with safe_open(folder / "sae_weights.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    squares = sum(float(t.double().square().sum()) for t in tensors.values())
    return sha(*(n.encode() + t.numpy().tobytes() for n, t in tensors.items())), squares


def of_cache(folder: Path) -> str:
    """A digest of every chunk of a cache; what it says of itself does not count."""
    chunks = sorted(p for p in folder.rglob("c*") if p.is_file() and p.name != "zarr.json")
    return sha(*(str(p.relative_to(folder)).encode() + p.read_bytes() for p in chunks))


def of_figures(value: object) -> str:
    return sha(json.dumps(value, sort_keys=True).encode())


def trained(run: Path, name: str, **settings: object) -> tuple[str, float]:
    sae.train(run=str(run), name=name, **{**TRAINED, **settings})
    return of_weights(run / "dictionaries" / name)


@pytest.fixture(scope="module")
def found(tmp_path_factory, tiny_model, tiny_text):
    """Digests of a cache, of dictionaries of every recipe, and of what is measured on them."""
    run = tmp_path_factory.mktemp("fixed") / "run"
    asked = harvest_settings(run, tiny_model, tiny_text)
    sae.harvest(**asked | {"hook_names": [HOOK, MID, OUT], "n_tokens": 4096})
    digests, sums = {"cache": of_cache(run / "cache.zarr")}, {}
    small = {"cache": str(run / "int8.zarr"), "dtype": "int8", "n_tokens": 2048}
    sae.harvest(**asked | small)
    digests["cache int8"] = of_cache(run / "int8.zarr")
    for name, recipe in RECIPES.items():
        digests[name], sums[name] = trained(run, name, sae=recipe, hook_name=HOOK)
    ends = {"hook_name": MID, "hook_name_out": OUT}
    skip = sae.TopKConfig(d_sae=64, k=6, skip_connection=True)
    digests["transcoder"], sums["transcoder"] = trained(run, "transcoder", sae=skip, **ends)
    begun = {"sae": RECIPES["gated"], "init_from": str(run / "dictionaries/gated")}
    digests["begun"], sums["begun"] = trained(run, "begun", hook_name=HOOK, seed=3, **begun)
    names = [*RECIPES, "transcoder", "begun"]
    figures = [one.to_json() for one in sae.eval(run=str(run), n_behaviour_tokens=256)]
    kept = {"explained_variance", "mse", "l0", "dead_fraction", "density_histogram"}
    kept |= {name for name in figures[0] if name.startswith(("ce_", "kl_"))}
    assert sorted(one["id"] for one in figures) == sorted(names)
    for one in figures:
        digests[f"eval {one['id']}"] = of_figures({key: one[key] for key in sorted(kept)})
    for name in ("topk", "transcoder"):
        atlas = sae.analyze(
            run=str(run), dictionary=name, n_contexts=3, dials=sae.DialConfig(n_features=0)
        )
        tables = (atlas.feature_table(), atlas.context_table())
        columns = [table.to_pydict() for table in tables]
        # A column that came later, empty where the run has one seed.
        assert set(columns[0].pop("stability")) == {None}
        digests[f"atlas {name}"] = of_figures(columns)
    # This was recorded on two threads.
    torch.set_num_threads(2)
    steered = sae.steer(run=str(run), dictionary="topk", features=[1, 5], max_new_tokens=6)
    measured = [{k: one[k] for k in ("measurements", "samples")} for one in steered["features"]]
    digests["steering"] = of_figures(measured)
    torch.set_num_threads(1)
    return digests, sums


def test_it_is_what_it_was(found):
    digests, sums = found
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    if os.environ.get("RECORD"):
        recorded.setdefault("machines", {})[machine()] = digests
        recorded["squares"] = sums
        RECORDED.write_text(json.dumps(recorded, indent=2, sort_keys=True) + "\n")
    # On any machine the weights are the same but for rounding.
    assert sums == pytest.approx(recorded["squares"], rel=0.05)
    if machine() in recorded["machines"]:
        assert digests == recorded["machines"][machine()]
