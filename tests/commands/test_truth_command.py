"""`sae truth`: recipes side by side on a world, scored, compared and found again."""

import json

import pytest

import sae
from sae.base import UserError
from sae.cli import main

SMALL = ["world.n_features=40", "world.d_in=16", "world.n_roots=3", "sae.d_sae=40", "sae.k=3"]
SHORT = ["training_tokens=4096", "train_batch_size_tokens=512", "n_scored_rows=1024"]


def test_recipes_and_seeds_are_trained_scored_and_compared(tmp_path, capsys):
    words = [f"run={tmp_path}", "sae=topk,batchtopk", "seed=1,2", *SMALL, *SHORT]
    assert main(["truth", *words]) == 0
    said = capsys.readouterr().err
    names = [f"{name}-40-k-3" for name in ("topk", "batchtopk")]
    for name in names:
        assert f"truth: {name} " in said
        for seed in (1, 2):
            found = json.loads((tmp_path / f"truth/{name}-seed-{seed}.json").read_text())
            keys = [one["key"] for one in found["findings"]]
            assert {"truth_f1", "truth_mcc", "truth_l0", "explained_variance"} <= set(keys)
            assert (tmp_path / f"dictionaries/{name}-seed-{seed}").is_dir()
    assert (tmp_path / "truth.png").read_bytes().startswith(b"\x89PNG")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("truth/*.json")}
    assert main(["truth", *words]) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("truth/*.json")} == before


def test_another_world_under_the_same_name_is_refused(tmp_path):
    world = {"n_features": 40, "d_in": 16, "n_roots": 3}
    settings = {"run": str(tmp_path), "training_tokens": 2048, "n_scored_rows": 1024}

    def truth(**changed):
        return sae.truth(
            **settings,
            world=sae.WorldConfig(**world | changed),
            sae=sae.BatchTopKConfig(d_sae=40, k=3),
        )

    first = truth()
    assert first.world["n_features"] == 40
    with pytest.raises(UserError, match=r"world.seed is 0 there, 5 here"):
        truth(seed=5)


def test_the_named_worlds_compose(capsys):
    for name in ("mini", "synthsaebench-mini", "synthsaebench-clear", "synthsaebench-16k"):
        assert main(["truth", "--help", f"world={name}"]) == 0
        assert "world.n_features=" in capsys.readouterr().out
