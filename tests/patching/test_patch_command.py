"""`sae patch`: what it writes and finds again, and places saved as edits."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.world import save_tiny_model

import sae
from sae.base import UserError
from sae.cli import main
from sae.edits import Edits

PAIR = {
    "clean": "she said the dog fell and the",
    "corrupt": "she said the mill fell and the",
    "answer": " dog",
    "wrong": " snow",
}
SLOTS = {"a": ["dog", "mill", "river", "snow", "roof", "year"], "b": ["late", "grey", "small"]}
TEMPLATE = {
    "clean": "she said the {a} fell on {b} tiles and the",
    "corrupt": "she said the {c} fell on {b} tiles and the",
    "answer": " {a}",
    "wrong": " {c}",
    "slots": {**SLOTS, "c": SLOTS["a"]},
}


@pytest.fixture(scope="module", autouse=True)
def small_differences():
    """A random model prefers no answer by much."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sae.patching.study.LEAST_DIFFERENCE", 0.01)
        yield


@pytest.fixture(scope="module")
def settings(tmp_path_factory, tiny_model):
    run = tmp_path_factory.mktemp("patch") / "run"
    return {"run": str(run), "model": sae.ModelConfig(name=str(tiny_model), device="cpu")}


@pytest.fixture(scope="module")
def drawn(settings):
    return sae.patch(
        **settings, **TEMPLATE, name="drawn", n_pairs=4, n_exact=2, receivers=["logits", "L2H1"]
    )


def test_results_are_a_page_pictures_tables_and_a_summary(drawn):
    names = {path.name for path in drawn.folder.iterdir()}
    assert {"index.html", "patching.png", "patching.parquet", "summary.json"} <= names
    frame = drawn.to_pandas()
    assert {*frame.method} == {"exact", "plain", "relp", "ig"}
    assert {*frame["patch"]} == {"denoising", "noising"}
    assert {*frame.site} == {"residual", "attention", "mlp", "head", "path"}
    assert {*frame[frame.method == "exact"].n} == {2}
    assert {*frame[frame.method == "relp"].n} == {4}
    assert not frame.duplicated([*frame.columns[:9]]).any()
    assert {*frame[frame.site == "path"].method} == {"exact"}
    several = frame[frame.low.notna()]
    assert len(several) == len(frame)
    assert (several.low <= several.effect + 1e-9).all()
    assert (several.effect <= several.high + 1e-9).all()


def test_the_whole_stream_at_the_last_token_of_the_last_block_carries_all(drawn):
    frame = drawn.to_pandas()
    last = frame[(frame.site == "residual") & (frame.layer == 2) & (frame.method == "exact")]
    n = last.position.max()
    assert last[last.position == n].effect.to_numpy() == pytest.approx(1, abs=1e-3)
    assert last[last.position < n].effect.to_numpy() == pytest.approx(0, abs=1e-3)


def test_the_summary_tells_agreement_controls_and_cost(drawn):
    told = drawn.summary
    (group,) = told["groups"]
    assert (group["n_pairs"], group["n_exact"]) == (4, 2)
    at = group["differing"][0]
    assert group["tokens"][at].endswith("…")
    assert group["tokens"][at - 1] == " the"
    methods = {row["method"] for row in told["agreement"]}
    assert methods == {"plain", "relp", "ig", "norm"}
    assert all(-1 <= row["r"] <= 1 for row in told["agreement"])
    assert {row["site"] for row in told["controls"]} == {"residual", "attention", "mlp", "head"}
    assert all(row["control"] is not None for row in told["controls"])
    exact = [row for row in told["cost"] if "forwards" in row]
    assert all(row["forwards"] < 0.7 * row["naive"] for row in exact if row["site"] != "path")


def test_asked_again_nothing_is_computed_and_other_settings_are(settings, monkeypatch, capsys):
    first = sae.patch(**settings, **PAIR, sites=["mlp"], patches=["denoising"])
    before = (first.folder / "summary.json").stat().st_mtime_ns
    with monkeypatch.context() as patched:
        patched.setattr("sae.commands.patch.planned", None)
        again = sae.patch(
            **settings, **PAIR, sites=["mlp"], patches=["denoising"], batch_size=7
        )
    assert "is finished already and is reused" in capsys.readouterr().err
    assert (again.folder / "summary.json").stat().st_mtime_ns == before
    (first.folder / "index.html").write_text("damaged")
    sae.patch(**settings, **PAIR, sites=["mlp"], patches=["denoising"])
    assert (first.folder / "index.html").read_text() != "damaged"
    other = sae.patch(**settings, **PAIR, sites=["mlp"], patches=["noising"])
    assert {*other.to_pandas()["patch"]} == {"noising"}


def test_pairs_that_cannot_be_patched_are_told_and_the_others_are_done(settings, capsys):
    pairs = [PAIR, {**PAIR, "corrupt": "the mill"}, {**PAIR, "answer": " xylophone"}]
    found = sae.patch(**settings, pairs=pairs, name="some", methods=["relp"])
    said = capsys.readouterr().err
    assert said.count("is left out:") == 2
    assert len(found.summary["left_out"]) == 2
    assert found.summary["groups"][0]["n_pairs"] == 1


def test_without_a_pair_that_can_be_patched_each_is_refused_in_a_sentence(settings):
    pairs = [{**PAIR, "corrupt": "the mill"}, {**PAIR, "answer": " xylophone"}]
    with pytest.raises(UserError) as caught:
        sae.patch(**settings, pairs=pairs, name="none")
    assert len(str(caught.value).splitlines()) == 2
    assert not [*(Path(settings["run"]) / "patching").glob("*none*")]


def test_an_encoder_is_refused_before_anything_is_loaded(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("sae.commands.patch.load_model", None)
    with pytest.raises(UserError, match="is an encoder and predicts no next token"):
        sae.patch(run=str(tmp_path / "run"), model=sae.ModelConfig(name=str(encoder)))
    assert not [*tmp_path.glob("run*")]


def test_pairs_that_the_model_answers_alike_are_left_out(settings, monkeypatch):
    monkeypatch.setattr("sae.patching.study.LEAST_DIFFERENCE", 1e6)
    with pytest.raises(UserError, match="no pair is left that can be patched"):
        sae.patch(**settings, **PAIR, name="alike")


def test_prompts_of_other_shapes_are_groups_of_their_own(settings):
    longer = {key: PAIR[key] for key in ("answer", "wrong")}
    longer |= {k: f"before morning {PAIR[k]}" for k in ("clean", "corrupt")}
    found = sae.patch(
        **settings, pairs=[PAIR, longer, PAIR], name="groups", methods=["plain", "exact"],
        sites=["residual"], n_exact=2,
    )  # fmt: skip
    sizes = [(group["n_pairs"], group["n_exact"]) for group in found.summary["groups"]]
    assert sizes == [(2, 1), (1, 1)]
    assert {*found.to_pandas().group} == {0, 1}


def test_a_direction_is_saved_as_an_edit_that_does_what_was_found(settings, drawn, tmp_path):
    out = tmp_path / "edit.yaml"
    folder = str(drawn.folder)
    n = len(drawn.summary["groups"][0]["tokens"])
    place = ["site=residual", "layer=1", f"position={n - 1}"]
    assert main(["patch", "edit", folder, str(out), *place]) == 0
    (record,) = Edits.read(out).records
    assert record.at == "blocks.1.hook_resid_post"
    assert record.where.prompt == ((-1, None),)
    direction = drawn.direction("residual", 1, n - 1)
    assert record.by == pytest.approx(float(direction.norm()))
    held = np.load(record.direction)
    assert held == pytest.approx(direction.numpy())
    model = sae.model(settings["model"].name, device="cpu")
    prompt = drawn.summary["groups"][0]["corrupt"]
    plain = model.logprobs(prompt)
    with model.edited(str(out)):
        changed = model.logprobs(prompt)
    assert not torch.allclose(plain, changed, atol=1e-2)
    assert main(["edit", "check", str(out)]) == 0
    assert main(["patch", "edit", folder, str(out), "site=head", "layer=1", "head=1"]) == 2


def test_a_model_whose_weights_have_changed_is_patched_again(
    tiny_model, tokenizer_folder, tmp_path
):
    place = tmp_path / "model"
    shutil.copytree(tiny_model, place)
    asked = {"run": str(tmp_path / "run"), "model": sae.ModelConfig(name=str(place))}
    asked |= {"sites": ["mlp"], "methods": ["plain"], "patches": ["denoising"], **PAIR}
    before = sae.patch(**asked).to_pandas()
    shutil.rmtree(place)
    save_tiny_model("llama", place, tokenizer_folder, seed=3)
    assert not before.equals(sae.patch(**asked).to_pandas())


def test_what_lies_beside_an_edit_file_is_not_written_over(drawn, tmp_path):
    n = len(drawn.summary["groups"][0]["tokens"])
    mine = tmp_path / "edit-direction.npy"
    mine.write_text("mine")
    place = {"site": "mlp", "layer": 1, "position": n - 1}
    with pytest.raises(UserError, match=r"edit-direction.npy exists already"):
        sae.patch_edit(results=str(drawn.folder), out=str(tmp_path / "edit.yaml"), **place)
    assert mine.read_text() == "mine"
    assert not (tmp_path / "edit.yaml").exists()


def test_without_maps_there_is_no_picture_to_show(settings, capsys):
    found = sae.patch(**settings, **PAIR, name="paths", sites=[], receivers=["L2H1"])
    assert {*found.to_pandas().site} == {"path"}
    assert "patching.png" not in capsys.readouterr().err
    with pytest.raises(UserError, match="has no picture"):
        found.plot()


def test_a_head_is_saved_as_an_ablation(drawn, tmp_path):
    out = tmp_path / "head.yaml"
    sae.patch_edit(results=str(drawn.folder), out=str(out), site="head", layer=2, head=3)
    (record,) = Edits.read(out).records
    assert (record.at, record.head, record.do) == ("blocks.2.attn.hook_z", 3, "ablate")


def test_places_that_were_not_patched_are_refused_in_a_sentence(drawn, tmp_path):
    for where, sentence in (
        ({"site": "tail"}, "site=tail cannot be edited"),
        ({"site": "head", "layer": 9, "head": 1}, "layer=9 is out of range; give 0 to 2"),
        ({"site": "mlp", "layer": 1}, "give layer and position"),
        ({"site": "mlp", "layer": 1, "position": 99}, "position=99 is out of range"),
        ({"site": "mlp", "layer": 1, "position": 0}, "clean and corrupt are the same at"),
        ({"site": "feature", "feature": 3}, "feature=3 was not patched; these were: none"),
    ):
        with pytest.raises(UserError, match=sentence):
            sae.patch_edit(results=str(drawn.folder), out=str(tmp_path / "x.yaml"), **where)
    with pytest.raises(UserError, match="contains no results of patching"):
        sae.patch_edit(results=str(tmp_path), out=str(tmp_path / "x.yaml"), site="mlp")


def test_features_of_a_dictionary_are_patched_and_one_is_saved(
    settings, tiny_run, tmp_path, capsys
):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    shutil.rmtree(run / "dictionaries" / "weak")
    sae.analyze(run=str(run), dictionary="strong", dials=sae.DialConfig(n_features=0))
    found = sae.patch(
        **{**settings, "run": str(run)},
        **PAIR,
        dictionary="recommended",
        n_features=3,
        sites=["mlp"],
    )
    assert found.summary["dictionary"]["name"].endswith("strong")
    frame = found.to_pandas()
    assert {"features", "error", "features+error", "feature"} <= {*frame.site}
    single = frame[frame.site == "feature"]
    assert single.feature.nunique() == 3
    assert {*single.method} == {"exact", "plain", "relp", "ig"}
    both = frame[(frame.site == "features+error") & (frame.method == "exact")]
    assert both.effect.abs().max() > 0
    about = found.summary["dictionary"]
    assert {*map(int, about["labels"])} == {*single.feature}
    assert (found.folder / about["atlas"]).exists()
    number = int(single.feature.iloc[0])
    (record,) = found.edits("feature", feature=number).records
    assert record.feature == number
    changes = json.loads((found.folder / "summary.json").read_text())["dictionary"]
    assert record.by == changes["code_changes"][str(number)]
    n = len(found.summary["groups"][0]["tokens"])
    (record,) = found.edits("error", position=n - 1).records
    assert record.at == about["hook_name"]
    parts = [found.direction(part, 0, n - 1) for part in ("features", "error")]
    torch.testing.assert_close(sum(parts), found.direction("features+error", 0, n - 1))
    with pytest.raises(UserError, match="feature=999 was not patched; these were"):
        found.edits("feature", feature=999)


def test_a_notebook_shows_the_strongest_places_and_the_picture(drawn):
    assert "<th>layer</th>" in drawn._repr_html_()
    assert repr(drawn).startswith("PatchResults(4 pairs of ")
    assert drawn.plot().size[0] > 100
    strongest = drawn.strongest(3)
    assert len(strongest) == 3
    assert abs(strongest[0]["effect"]) >= abs(strongest[1]["effect"])
