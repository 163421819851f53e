"""Dashboards with odd values, and imports and exports that are killed or run side by side."""

import copy
import json
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from support.dashboards import PLACE, import_atlas
from transformers import GPT2Config

from sae.atlas import Atlas, write_record
from sae.base.errors import UserError
from sae.base.files import only_process
from sae.cli import main
from sae.config.commands import COMMANDS
from sae.exchange.dashboards.exporting import FORMATS, export_atlas
from sae.exchange.dashboards.tables import Scratch
from sae.run import new_folder

FEATURE = {
    "feature_index": 0,
    "frac_nonzero": 0.1,
    "maxActApprox": 1.0,
    "pos_str": ["a", "b"],
    "pos_values": [2.0, 1.0],
    "neg_str": ["c", "d"],
    "neg_values": [-2.0, -1.0],
    "activations": [
        {
            "bin_min": -1,
            "bin_max": 1,
            "tokens": ["a", "b"],
            "values": [0.5, 1.0],
            "qualifying_token_index": 1,
        }
    ],
}


def written(folder, features, *, head=None, settings=None):
    """A folder of SAEDashboard's with these features."""
    folder.mkdir()
    about = {"model_id": "m", "layer": 1, "sae_set": "s"} | (head or {})
    (folder / "batch-0.json").write_text(json.dumps(about | {"features": features}))
    (folder / "run_settings.json").write_text(json.dumps(settings or {}))
    return folder


def imported(tmp_path, change=None, **about) -> Atlas:
    feature = copy.deepcopy(FEATURE)
    if change is not None:
        change(feature)
    return import_atlas(written(tmp_path / "in", [feature], **about), tmp_path / "out")


# Killed, and side by side


def partial(target: Path) -> Path:
    """What a process that was killed while it wrote `target` leaves."""
    left = target.with_name(f".{target.name}.0123abcd.partial")
    (left / "features").mkdir(parents=True)
    (left / "features" / "batch-0.jsonl.gz").write_bytes(b"cut")
    return left


@pytest.mark.parametrize("format", FORMATS)
def test_what_a_killed_export_left_is_removed_by_the_next(format, atlas, tmp_path):
    out = tmp_path / "out"
    bulk = format == "neuronpedia"
    left = partial(out / PLACE["model_id"] / PLACE["source"] if bulk else out)
    export_atlas(atlas.folder, out, format, **PLACE)
    assert not left.exists()


@pytest.mark.parametrize("place", ["runs/atlas/x", "elsewhere/x"])
def test_what_a_killed_import_left_is_removed_by_the_next(place, tmp_path):
    left = partial(tmp_path / place)
    import_atlas(written(tmp_path / "in", [FEATURE]), tmp_path / place)
    assert not left.exists()


def test_a_killed_export_is_not_taken_for_a_source(atlas, tmp_path):
    export_atlas(atlas.folder, tmp_path / "out", **PLACE)
    partial(tmp_path / "out" / PLACE["model_id"] / "2-other")
    assert import_atlas(tmp_path / "out", tmp_path / "x").record.d_sae == 64
    partial(tmp_path / "bulk")
    with pytest.raises(UserError, match="has neither features/"):
        import_atlas(tmp_path, tmp_path / "y")


def test_of_two_imports_to_one_folder_the_second_is_refused(tmp_path):
    source = written(tmp_path / "in", [FEATURE])
    # A file that is not read to its end before this test says so.
    os.mkfifo(source / "batch-1.json")
    out, done = tmp_path / "out", []
    first = threading.Thread(target=lambda: done.append(import_atlas(source, out)))
    first.start()
    try:
        until = time.monotonic() + 60
        while not list(tmp_path.glob(".out.*.partial")) and time.monotonic() < until:
            time.sleep(0.01)
        with pytest.raises(UserError, match="is being made by another process"):
            import_atlas(written(tmp_path / "other", [FEATURE]), out)
        assert list(tmp_path.glob(".out.*.partial"))
    finally:
        second = json.dumps({"model_id": "m", "layer": 1, "sae_set": "s", "features": []})
        (source / "batch-1.json").write_text(second)
        first.join(60)
    assert done[0].record.d_sae == 1


def test_an_atlas_that_sae_analyze_is_writing_is_not_imported_over(tmp_path):
    source, parent = written(tmp_path / "in", [FEATURE]), tmp_path / "run" / "atlas"
    left = partial(parent / "x")
    # The lock that sae analyze holds.
    with (
        only_process(parent / ".x.lock", UserError),
        pytest.raises(UserError, match="is being made by another process"),
    ):
        import_atlas(source, parent / "x")
    assert left.exists()


def test_what_appears_meanwhile_is_not_replaced(tmp_path):
    mine, target = tmp_path / "mine", tmp_path / "x"
    (mine / "label").mkdir(parents=True)
    with (
        pytest.raises(UserError, match="exists already; choose another one or remove it"),
        new_folder(target, tmp_path / "lock") as temporary,
    ):
        shutil.copytree(mine, target)
    assert (target / "label").exists()
    assert not temporary.exists()


# Too much of something


def test_a_histogram_of_far_too_many_bars_is_refused(tmp_path):
    bars = {
        "freq_hist_data_bar_heights": [1] * 201,
        "freq_hist_data_bar_values": [0.5] * 201,
    }
    with pytest.raises(UserError, match=r"batch-0.json: feature 0 has .* 201 bars; 200 are"):
        imported(tmp_path, lambda f: f.update(bars))


def test_contexts_of_any_number_of_features_are_kept_in_one_file(tmp_path):
    owners = np.random.default_rng(0).permutation(np.repeat(np.arange(0, 400_000, 1000), 3))
    scratch, one = Scratch(tmp_path), pyarrow.array(owners, pyarrow.int32())
    opened = len(os.listdir("/proc/self/fd"))
    scratch.add(pyarrow.table({"feature": one, "row": np.arange(1200)}))
    scratch.add(pyarrow.table({"feature": one, "row": np.arange(1200, 2400)}))
    assert len(os.listdir("/proc/self/fd")) <= opened + 1
    assert len(list(tmp_path.iterdir())) == 1
    tables = list(scratch.tables())
    buckets = [set((table["feature"].to_numpy() // 1024).tolist()) for table in tables]
    assert buckets == [{bucket} for bucket in sorted(set((owners // 1024).tolist()))]
    rows = pyarrow.concat_tables(tables).sort_by("row")
    assert rows["feature"].to_pylist() == [*owners.tolist(), *owners.tolist()]


def test_a_feature_far_beyond_what_the_files_hold_is_refused(tmp_path):
    features = [FEATURE, FEATURE | {"feature_index": 4_194_303}]
    with pytest.raises(UserError, match=r"4,194,303 is far beyond the 2 that these files"):
        import_atlas(written(tmp_path / "in", features), tmp_path / "x")
    settings = {"sae_atlas_manifest": {"d_sae": 4_194_303}}
    with pytest.raises(UserError, match=r"4,194,302 is far beyond the 1 that these files"):
        import_atlas(written(tmp_path / "one", [FEATURE], settings=settings), tmp_path / "x")


@pytest.mark.parametrize("count", [2**40, 10**20])
def test_a_number_of_tokens_that_cannot_be_is_not_known(count, tmp_path):
    settings = {"n_prompts_total": count, "n_tokens_in_prompt": count}
    found = imported(tmp_path, settings=settings)
    assert found.record.n_rows is None
    assert found.feature_table()["n_active"].to_pylist() == [None]


# Odd values


@pytest.mark.parametrize("sign", ["pos", "neg"])
@pytest.mark.parametrize("odd", [None, float("nan"), float("inf")])
def test_logits_of_no_token_or_no_number_are_left_out(sign, odd, tmp_path):
    name = {"pos": "top", "neg": "bottom"}[sign]
    what = "str" if odd is None else "values"
    found = imported(tmp_path, lambda f: f[f"{sign}_{what}"].__setitem__(0, odd))
    table = found.feature_table()
    assert table[f"{name}_logit_tokens"].to_pylist() == [FEATURE[f"{sign}_str"][1:]]
    assert table[f"{name}_logits"].to_pylist() == [FEATURE[f"{sign}_values"][1:]]


@pytest.mark.parametrize("tokens", ["ab", "\ud800", "\ud800x"])
def test_a_text_is_no_list_of_tokens(tokens, tmp_path):
    said = "batch-0.json, feature 0: tokens is not a list of texts but '"
    with pytest.raises(UserError, match=said):
        imported(tmp_path, lambda f: f["activations"][0].update(tokens=tokens))


def test_a_peak_that_is_no_number_falls_back_on_the_highest(tmp_path):
    found = imported(
        tmp_path, lambda f: f["activations"][0].update(qualifying_token_index=False)
    )
    assert found.context_table()["position"].to_pylist() == [1]


def test_counts_that_are_true_are_not_known(tmp_path):
    found = imported(tmp_path, settings={"n_prompts_total": True, "n_tokens_in_prompt": 8})
    assert found.record.n_sequences is None


def test_halves_of_characters_are_replaced_wherever_they_are(tmp_path):
    half = "x\ud800"
    found = imported(
        tmp_path,
        head={"model_id": half},
        settings={
            "huggingface_dataset_path": half,
            "sae_atlas_manifest": {"architecture": half, half: half},
        },
    )
    names = ("model_name", "data", "architecture")
    assert [getattr(found.record, name) for name in names] == ["x\ufffd"] * 3


@pytest.mark.parametrize("highest", [1e308, float("inf"), -1e39])
def test_an_activation_that_no_float32_holds_is_refused(highest, tmp_path):
    with pytest.raises(UserError, match=r"batch-0.json: feature 0 has maxActApprox="):
        imported(tmp_path, lambda f: f.update(maxActApprox=highest))


@pytest.mark.parametrize(("height", "middle"), [(1e300, 0.5), (1, 1e300), (1, float("nan"))])
def test_a_bar_that_is_nowhere_or_counts_nothing_is_refused(height, middle, tmp_path):
    bars = {"freq_hist_data_bar_heights": [height], "freq_hist_data_bar_values": [middle]}
    with pytest.raises(UserError, match="feature 0 has a histogram with a bar"):
        imported(tmp_path, lambda f: f.update(bars | {"maxActApprox": None}))


# What is said


def test_bodies_of_uploads_are_said_to_be_such(atlas, tmp_path):
    out = export_atlas(atlas.folder, tmp_path / "out", "upload", **PLACE)
    with pytest.raises(
        UserError, match=r"upload call, .* format=neuronpedia or format=saedash"
    ):
        import_atlas(out, tmp_path / "x")


def test_a_run_that_is_not_there_or_has_no_atlas_is_said_to_be_so(tmp_path):
    with pytest.raises(
        UserError, match="nope is not a folder; give an atlas, or a run that has"
    ):
        export_atlas(tmp_path / "nope", tmp_path / "out")
    with pytest.raises(
        UserError, match="contains no atlas; give the folder of an atlas, or a run"
    ):
        export_atlas(tmp_path, tmp_path / "out")
    (tmp_path / "features.parquet").touch()
    with pytest.raises(UserError, match="is not a finished atlas"):
        export_atlas(tmp_path, tmp_path / "out")


def test_a_format_is_refused_with_the_nearest_one(atlas, tmp_path, capsys):
    words = ["atlas", "export", str(atlas.folder), str(tmp_path / "out")]
    assert main([*words, "format=dashboard"]) == 2
    assert "nearest: saedashboard; choose one of neuronpedia," in capsys.readouterr().err


def test_help_shows_what_every_key_is_by_default(capsys):
    assert main(["atlas", "export", "--help"]) == 0
    said = capsys.readouterr().out
    assert "creator=sae-atlas\n" in said
    assert "creator_id=clkht01d40000jv08hvalcvly\n" in said
    places = [word for word in COMMANDS["atlas export"].example.split()[3:] if "=" not in word]
    assert len(places) == 2
    assert not set(places) & set(FORMATS)


def test_the_row_of_a_model_has_its_sizes_where_its_config_is_here(atlas, tmp_path):
    def row(name, given):
        mine = tmp_path / name
        shutil.copytree(atlas.folder, mine)
        write_record(mine, replace(atlas.record, model_name=given))
        out = export_atlas(mine, tmp_path / f"{name}-out", **PLACE)
        found = json.loads((out / "model.jsonl").read_text())
        return found["layers"], found["neuronsPerLayer"]

    config = json.loads((Path(atlas.record.model_name) / "config.json").read_text())
    sizes = config["num_hidden_layers"], config["intermediate_size"]
    assert row("llama", atlas.record.model_name) == sizes
    GPT2Config(n_embd=24, n_layer=3, n_head=2).save_pretrained(tmp_path / "gpt2")
    assert row("ours", str(tmp_path / "gpt2")) == (3, 96)
    assert row("nowhere", "nobody/no-such-model") == (0, 0)
