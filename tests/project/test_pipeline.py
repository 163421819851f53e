"""The whole path, on a tiny model: what it leaves behind, again, and after being killed."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.browser import needs_browser
from support.world import HOOK

import sae
from sae.atlas import Atlas


def words(run, model, text):
    return [
        "demo",
        f"run={run}",
        f"model@harvest.model={model}",
        f"data@harvest.data={text}",
        f"harvest.hook_names=[{HOOK}]",
        "harvest.n_tokens=8192",
        "harvest.context_size=32",
        "train.sae.d_sae=48",
        "train.training_tokens=60_000",
        "train.train_batch_size_tokens=128",
        "train.checkpoint.every_seconds=0.1",
        "l1_coefficients=[0.3,1,3]",
        "eval.max_l0=20",
        "eval.n_behaviour_tokens=256",
        "steer.n_features=3",
        "steer.strengths=[-1,0,1]",
        "steer.max_new_tokens=4",
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model, tiny_text):
    """The run of a demo, and what it said."""
    run = tmp_path_factory.mktemp("demo") / "run"
    command = [sys.executable, "-m", "sae.cli", *words(run, tiny_model, tiny_text)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return run, done.stderr


def test_the_report_has_every_promised_figure(finished):
    run, said = finished
    report = json.loads((run / "report.json").read_text())
    controls = [figures for figures in report["dictionaries"] if "control" in figures]
    assert {figures["control"] for figures in controls} == {"frozen_decoder"}
    assert (len(report["dictionaries"]), len(controls)) == (6, 3)
    expected = {"id", "l1_coefficient", "l0", "explained_variance", "ce_loss_score"}
    expected |= {"kl_div_score", "dead_fraction"}
    for figures in report["dictionaries"]:
        assert expected <= set(figures)
        assert figures["id"] in said
    assert {"n_tokens", "tokens_per_second"} <= set(report["cache"])
    assert len(report["steering"]["features"]) == 3
    stages = {"harvest", "train", "eval", "analyze", "steer", "export"}
    assert set(report["timings"]) == stages
    assert f"report: {run}/report.html" in said


def test_fewer_latents_are_active_the_larger_the_coefficient(finished):
    report = json.loads((finished[0] / "report.json").read_text())
    trained = [figures for figures in report["dictionaries"] if "control" not in figures]
    by_coefficient = sorted(trained, key=lambda f: f["l1_coefficient"])
    l0 = [figures["l0"] for figures in by_coefficient]
    assert l0 == sorted(l0, reverse=True)
    assert l0[0] > l0[-1]


def test_the_chosen_dictionary_follows_the_stated_rule(finished):
    report = json.loads((finished[0] / "report.json").read_text())
    trained = [figures for figures in report["dictionaries"] if "control" not in figures]
    sparse = [f for f in trained if f["l0"] <= 20]
    best = max(sparse, key=lambda f: f["explained_variance"])
    assert report["chosen"]["id"] == best["id"]
    assert (finished[0] / "atlas" / best["id"] / "features.parquet").is_file()


def test_the_page_shows_every_feature_and_needs_no_network(finished):
    page = (finished[0] / "report.html").read_text()
    report = json.loads((finished[0] / "report.json").read_text())
    assert all(figures["id"] in page for figures in report["dictionaries"])
    assert 'src="http' not in page
    assert (finished[0] / "pareto.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_second_demo_reuses_every_stage_and_keeps_the_timings(
    finished, tiny_model, tiny_text, command
):
    run, _ = finished
    before = json.loads((run / "report.json").read_text())
    said = command(*words(run, tiny_model, tiny_text)).stderr
    for stage in ("harvest", "eval", "analyze", "steer", "export"):
        assert any(
            line.startswith(f"{stage}:") and "reused" in line for line in said.splitlines()
        )
    assert "train: 6 of 6 are finished already and are reused" in said
    assert json.loads((run / "report.json").read_text()) == before


@pytest.mark.slow
@needs_browser
def test_the_pictures_of_the_readme_are_made_from_a_demo(finished, tmp_path):
    run, _ = finished
    script = Path(__file__).parents[2] / "scripts" / "pictures.py"
    recommended = json.loads((run / "pareto.json").read_text())["recommended"]
    rows = Atlas(run / "atlas" / recommended).features()
    live = [str(row["feature"]) for row in rows if row["max_activation"] > 0]
    asked = [str(run), "--feature", "3", "--dials", *live[:2], "--out", str(tmp_path)]
    subprocess.run([sys.executable, str(script), *asked], check=True, timeout=200)
    sizes = {p.name: p.stat().st_size for p in tmp_path.iterdir()}
    assert sorted(sizes) == ["atlas.png", "desk.png", "feature.png", "pareto.png"]
    assert min(sizes.values()) > 20_000
    assert (tmp_path / "atlas.png").read_bytes() != (tmp_path / "feature.png").read_bytes()


@pytest.mark.slow
def test_a_demo_killed_at_several_instants_ends_with_the_same_dictionaries(
    finished, tmp_path, tiny_model, tiny_text, start
):
    whole, run = finished[0], tmp_path / "killed"
    asked = words(run, tiny_model, tiny_text)
    for stage in ("cache.zarr", "training", "dictionaries"):
        child = start(*asked)
        deadline = time.monotonic() + 300
        while not (run / stage).exists() and child.process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.2)
        child.kill()
    assert start(*asked).ended(300).returncode == 0
    names = sorted(p.name for p in (whole / "dictionaries").iterdir())
    assert names == sorted(p.name for p in (run / "dictionaries").iterdir())
    for name in names:
        a, b = (sae.load(str(r / "dictionaries" / name)) for r in (whole, run))
        assert torch.equal(a.W_enc, b.W_enc)
        assert torch.equal(a.W_dec, b.W_dec)
