"""`sae edit check`: sizes in all units, digests, and all that is wrong, without weights."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sae
from sae.base.errors import UserError
from sae.cli import main
from sae.edits import Edits
from sae.interactive import Model

POST = "blocks.1.hook_resid_post"
DEAD = 63


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a dictionary, one feature of which is dead, and its atlas."""
    found = tmp_path_factory.mktemp("edits") / "run"
    shutil.copytree(tiny_run / "cache.zarr", found / "cache.zarr")
    d = sae.load(str(tiny_run / "dictionaries/weak"))
    b_enc = d.b_enc.clone()
    b_enc[DEAD] = -1e9
    sae.save(replace(d, b_enc=b_enc), str(found / "dictionaries/weak"))
    sae.analyze(run=str(found), n_contexts=3)
    return found


@pytest.fixture(scope="module")
def folder(run: Path) -> str:
    return str(run / "dictionaries/weak")


@pytest.fixture(scope="module")
def features(run: Path) -> list[dict[str, Any]]:
    from sae.atlas import Atlas

    return Atlas(run / "atlas/weak").features()


@pytest.fixture(scope="module")
def live(features: list[dict[str, Any]]) -> int:
    return max(features, key=lambda row: row["n_active"])["feature"]


@pytest.fixture(scope="module")
def m(tiny_model: Path) -> Model:
    return sae.model(str(tiny_model))


def file_of(tmp_path: Path, *records: Any, **about: Any) -> str:
    path = tmp_path / "edits.yaml"
    Edits.from_plain({"edits": list(records), **about}).save(path)
    return str(path)


def said(*words: str) -> str:
    """The sentence that refuses a command."""
    with pytest.raises(UserError) as raised:
        sae.edit_check(**dict(word.split("=", 1) for word in words))
    return str(raised.value)


def amount(m: Model, **keys: Any) -> float:
    """What a size is in raw units, seen in what it adds."""
    from sae.edits.library import Library
    from sae.edits.plan import Planner

    (aim,) = Planner(m.subject, Library()).aims(sae.Edits((sae.edit(**keys),)))
    return float(aim.amount[0, 0])


def test_units_are_what_the_atlas_and_the_cache_say(m, run, folder, live, features):
    row, cache = features[live], sae.open_cache(run / "cache.zarr")
    keys = {"dictionary": folder, "feature": live, "do": "add", "by": 2.0}
    d = sae.load(folder)
    x = torch.cat(
        [
            cache.read(POST, c)[torch.from_numpy(cache.text_rows()[c])]
            for c in cache.chunks(POST)
        ]
    )
    acts = d.encode(x.float())[:, live].double()
    length = float(d.W_dec[live].norm())
    w = (d.W_dec[live] / length).double()
    assert amount(m, **keys, unit="raw") == 2.0
    assert amount(m, **keys, unit="max_act") == pytest.approx(2 * row["max_activation"])
    spread = float((x.double() @ w).std(correction=0))
    assert amount(m, **keys, unit="std") == pytest.approx(2 * spread / length, rel=1e-4)
    median = float(cache.statistics(POST)["norm_quantiles"][50])
    assert amount(m, **keys, unit="residual_norm") == pytest.approx(2 * median / length)
    bin_width = row["max_activation"] / 50
    for q in (0.25, 0.5, 0.99, 1.0):
        found = amount(m, **keys, unit=f"quantile:{q}") / 2
        true = float(torch.quantile(acts[acts > 0], q))
        assert found == pytest.approx(true, abs=1.5 * bin_width)


def test_check_says_every_size_and_loads_no_weights(
    tmp_path, capsys, monkeypatch, folder, live, features
):
    monkeypatch.setattr("sae.models.pretrained.Source.weights", None)
    path = file_of(
        tmp_path,
        {"dictionary": folder, "feature": live, "do": "set", "by": 1.0, "unit": "max_act"},
        {"at": POST, "token": "a", "do": "orthogonal"},
    )
    assert main(["edit", "check", path]) == 0
    shown = capsys.readouterr().out
    highest = features[live]["max_activation"]
    assert f"by {highest:.4g} raw; 1 of its highest activation" in shown
    assert "at or above 100.0% of its positive activations" in shown
    assert re.search(r"[\d.]+ standard deviations .*; [\d.]+ of the hook's median norm", shown)
    assert "2 edits of" in shown
    assert Edits.read(path).digest in shown
    assert "reads 1 of 64 features: 32 multiplications a token" in shown
    assert "by a factor of 0.0" in shown


def test_amounts_in_raw_units_need_no_atlas_elsewhere(tmp_path, m, run, folder, features):
    often = sorted(features, key=lambda row: -row["n_active"])[:3]
    several = [row["feature"] for row in often]
    about = {"dictionary": folder, "unit": "max_act"}
    path = file_of(
        tmp_path,
        about | {"features": several, "do": "set", "by": [0.5, 2.0]},
        about | {"features": several[:2], "do": "add", "by": 1.0, "unit": "residual_norm"},
        about | {"feature": several[0], "do": "cap", "by": 0.5},
        {"dictionary": folder, "feature": several[1], "do": "multiply", "by": 3.0},
    )
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    raw = sae.edit_check(file=path, out=str(tmp_path / "raw.yaml"), raw=True)
    assert {record.unit for record in raw.records} == {"raw"}
    assert [record.chosen for record in raw.records[:3]] == [(one,) for one in several]
    moved = (tmp_path / "raw.yaml").read_text().replace(folder, str(elsewhere))
    (tmp_path / "moved.yaml").write_text(moved)
    ids = torch.from_numpy(m.language_model.prompt_ids("the river ran")).long()
    both = ids.expand(2, -1)
    logits = []
    for file in (path, str(tmp_path / "moved.yaml")):
        with torch.no_grad(), m.edited(file):
            logits.append(m.module(both).logits)
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
    assert not torch.equal(logits[0], m.module(both).logits)
    with pytest.raises(UserError, match="raw=true needs a file; give out=FILE"):
        sae.edit_check(file=path, raw=True)
    token = {"at": POST, "token": "a", "do": "add", "by": 1.0, "unit": "residual_norm"}
    known = {"dictionary": folder, "feature": several[0], "do": "ablate"}
    path = file_of(tmp_path, known, token | {"cache": str(run / "cache.zarr")})
    with pytest.raises(UserError, match="of token 'a' cannot be converted to raw without"):
        sae.edit_check(file=path, out=str(tmp_path / "token.yaml"), raw=True)
    assert not (tmp_path / "token.yaml").exists()


def test_a_file_with_digests_is_refused_for_any_other_dictionary(
    tmp_path, m, run, folder, live
):
    np.save(tmp_path / "v.npy", np.ones(32, np.float32))
    vector = str(tmp_path / "v.npy")
    path = file_of(
        tmp_path,
        {"dictionary": folder, "feature": live, "do": "ablate"},
        {"at": POST, "direction": vector, "do": "add", "by": 1.0},
    )
    out = str(tmp_path / "pinned.json")
    pinned = sae.edit_check(file=path, out=out)
    assert pinned == Edits.read(out)
    assert pinned.records[0].digest == sae.load(folder).digest
    assert pinned.model_digest == m.language_model.record.weight_digest
    with m.edited(out):
        pass
    assert pinned.model == m.language_model.record.name
    assert "exists already" in said(f"file={path}", f"out={out}")
    np.save(tmp_path / "v.npy", np.full(32, 2.0, np.float32))
    moved = shutil.copytree(run, tmp_path / "run")
    other = sae.load(folder)
    shutil.rmtree(moved / "dictionaries/weak")
    weights = {"b_enc": other.b_enc + 1}
    sae.save(other.with_weights(weights), str(moved / "dictionaries/weak"))
    text = Path(out).read_text().replace(str(run), str(moved))
    (tmp_path / "moved.json").write_text(text)
    sentences = said(f"file={tmp_path / 'moved.json'}").split("\n")
    assert len(sentences) == 1
    assert "edits[0]" in sentences[0] or "has the digest" in sentences[0]
    with pytest.raises(UserError, match=r"edits\[1\]: .*v\.npy has the digest"), m.edited(out):
        pass


def test_a_unit_that_nothing_measures_is_refused_with_the_reason(tmp_path, run, folder, live):
    keys = {"dictionary": folder, "feature": live, "do": "set", "by": 1.0, "unit": "max_act"}
    bare = tmp_path / "dictionaries/weak"
    shutil.copytree(folder, bare)
    path = file_of(tmp_path, keys | {"dictionary": str(bare)})
    assert "has no atlas; make one with: sae analyze" in said(f"file={path}")
    path = file_of(tmp_path, keys | {"dictionary": str(bare), "unit": "std"})
    assert "cache.zarr is missing" in said(f"file={path}")
    toward = {"dictionary": str(bare), "feature": live, "do": "toward", "by": 1.0}
    sentence = said(f"file={file_of(tmp_path, toward)}")
    assert sentence.startswith("edits[0]: do=toward needs the second moments of activations")
    direction = {"at": POST, "token": "a", "do": "add", "by": 1.0, "unit": "residual_norm"}
    path = file_of(tmp_path, direction, model="smollm2")
    # Nothing but the unit is wrong with it; of a token the size is found with the weights.
    path = file_of(tmp_path, direction)
    assert "does not say which model" in said(f"file={path}")


def test_a_dead_feature_has_no_highest_activation(tmp_path, folder):
    keys = {"dictionary": folder, "feature": DEAD, "do": "set", "by": 1.0, "unit": "max_act"}
    assert "is dead" in said(f"file={file_of(tmp_path, keys)}")


def test_directions_are_measured_by_a_cache_that_is_named(m, run):
    keys = {"at": POST, "token": "a", "do": "add", "cache": str(run / "cache.zarr")}
    median = float(sae.open_cache(run / "cache.zarr").statistics(POST)["norm_quantiles"][50])
    found = amount(m, **keys, by=0.5, unit="residual_norm")
    assert found == pytest.approx(0.5 * median, rel=1e-5)


def test_least_change_reaches_the_target_and_costs_least(m, run, folder, live):
    from sae.models import find_site, read_activations

    cache = sae.open_cache(run / "cache.zarr")
    x = torch.cat(
        [
            cache.read(POST, c)[torch.from_numpy(cache.text_rows()[c])]
            for c in cache.chunks(POST)
        ]
    )
    moments = x.double().t() @ x.double() / len(x)
    d = sae.load(folder).W_dec[live].double()
    w, t = d / d.norm(), 5.0
    ids = torch.from_numpy(m.language_model.prompt_ids("the river ran")).long()[None]
    site = find_site(m.module, POST)

    def rows() -> torch.Tensor:
        return read_activations(m.module, [site], ids)[POST][0, 1:].double()

    before = rows()
    with m.edited(sae.edit(dictionary=folder, feature=live, do="toward", by=t)):
        moved = rows()
    torch.testing.assert_close(
        moved @ w, torch.full((len(moved),), t).double(), rtol=1e-4, atol=1e-4
    )
    delta = moved - before
    plain = (t - before @ w)[:, None] * w
    cost = [float(((one @ moments) * one).sum()) for one in (delta, plain)]
    assert cost[0] < cost[1]
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        # Any other change that reaches the target costs more.
        other = torch.randn(delta.shape, generator=draw, dtype=torch.float64)
        other = delta + 0.1 * (other - (other @ w)[:, None] * w)
        assert float(((other @ moments) * other).sum()) > cost[0]


def test_all_that_is_wrong_is_a_line_each(tmp_path, capsys):
    (tmp_path / "edits.yaml").write_text(
        "edits:\n- {dictionary: x, feature: 3, do: sett, by: 1}\n"
        "- {dictionary: x, feature: 3, do: set, by: .inf}\n"
    )
    assert main(["edit", "check", str(tmp_path / "edits.yaml")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("sae edit: ")
    assert "edits[0].do='sett' is unknown" in first
    assert second.startswith("sae edit: ")
    assert "edits[1].by=inf; give a finite" in second


def test_edits_are_told_as_they_are_made(tmp_path, capsys, folder, live):
    gated = {"feature": live, "do": "multiply", "by": 2.0, "when": {"feature": 3, "above": 1.0}}
    path = file_of(
        tmp_path,
        {"dictionary": folder} | gated,
        {"at": "every_writer", "token": "a", "do": "orthogonal"},
        {"at": "blocks.1.attn.hook_z", "head": 1, "do": "multiply", "by": 2.0},
    )
    sae.edit_check(file=path)
    shown = capsys.readouterr().out
    assert f"multiply feature {live} of {folder} at {POST}: (t − 1)·f·w\n" in shown
    assert "orthogonal token 'a' at every_writer: " in shown
    assert "multiply head 1 at blocks.1.attn.hook_z: (t − 1) times its output\n" in shown
    assert "reads 2 of 64 features: 64 multiplications a token" in shown
    assert "except [bos]" in shown
