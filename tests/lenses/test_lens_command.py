"""`sae lens`: what it writes, what it finds again, and what it refuses in one sentence."""

import json

import pytest
from support.world import harvest_settings, save_tiny_model

import sae
from sae.base import UserError
from sae.cli import main
from sae.models.probe import Probe

TEXT = "the old mill where she kept seven cats"
STREAMS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]
HEAVY = ("sae.commands.lens.load_model", "sae.models.load.load_model")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model, tiny_text):
    folder = tmp_path_factory.mktemp("lens") / "run"
    settings = harvest_settings(folder, tiny_model, tiny_text) | {"hook_names": STREAMS}
    sae.harvest(**settings | {"n_tokens": 4096})
    return folder


@pytest.fixture
def refused(capsys, monkeypatch, tmp_path):
    """Runs a command that has to be refused before weights are loaded."""

    def check(*words, fragments):
        def heavy(*_, **__):
            raise AssertionError("weights are loaded before the refusal")

        with monkeypatch.context() as patch:
            for name in HEAVY:
                patch.setattr(name, heavy)
            if not any(word.startswith("run=") for word in words):
                words = (*words, f"run={tmp_path / 'run'}")
            status = main(["lens", *words])
        lines = capsys.readouterr().err.splitlines()
        assert status == 2
        assert len(lines) == 1
        for fragment in fragments:
            assert fragment in lines[0]

    return check


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_it_writes_a_table_a_page_and_a_picture_and_says_what_is_in_them(
    tmp_path, tiny_model, capsys
):
    words = [TEXT, f"run={tmp_path}", f"model={tiny_model}", "model.device=cpu"]
    assert main(["lens", *words]) == 0
    folder = tmp_path / "lens" / "default"
    names = {"lens.parquet", "index.html", "lens.png", "lens.json", "SHA256SUMS"}
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "lens.png").read_bytes().startswith(b"\x89PNG")
    told = capsys.readouterr().err
    lines = [line.split()[:2] for line in told.splitlines() if line[:5] in ("embed", "block")]
    assert [" ".join(line) for line in lines][1:] == ["block 0", "block 1", "block 2"]
    assert "After the last token the model predicts" in told
    assert f"lens: {folder}/index.html, lens.png, lens.parquet" in told


def test_the_same_again_is_reused_and_other_settings_are_not(tmp_path, tiny_model, capsys):
    settings = {"run": str(tmp_path), "model": sae.ModelConfig(name=str(tiny_model))}
    first = sae.lens(text=TEXT, **settings)
    before = times(first.folder)
    again = sae.lens(sae.LensConfig(text=TEXT, **settings))
    assert "is finished already and is reused" in capsys.readouterr().err
    assert times(first.folder) == before
    assert again.table == first.table
    assert sae.lens(text=TEXT, n_top=2, **settings).table != first.table
    assert times(first.folder) != before
    assert sae.lens(text=TEXT + " and", **settings).text == TEXT + " and"
    page = first.folder / "index.html"
    page.write_text(page.read_text() + " ")
    assert sae.lens(text=TEXT + " and", **settings).folder == first.folder
    assert not page.read_text().endswith(" ")


def test_what_is_returned_is_of_use_in_a_notebook(tmp_path, tiny_model):
    model = sae.ModelConfig(name=str(tiny_model))
    found = sae.lens(text="<script>alert(1)</script> & cats", run=str(tmp_path), model=model)
    table = found.to_pandas()
    assert len(table) == 4 * len(found.tokens)
    assert set(table["layer"]) == {-1, 0, 1, 2}
    shown = found._repr_html_()
    assert "<script>" not in shown
    assert shown.count("<td") == len(table)
    assert repr(found).startswith("Lens(logit, ")
    figure = found.plot()
    # A text in each cell; of a long text the last positions are shown.
    assert len(figure.axes[0].texts) == 4 * min(24, len(found.tokens))


def test_a_tuned_lens_is_fitted_once_and_found_again(run, capsys):
    settings = {"run": str(run), "tuned": True, "n_held_out_tokens": 256}
    found = sae.lens(text=TEXT, name="one", **settings)
    assert found.kinds == ["logit", "tuned"]
    maps = run / "tuned_lens"
    assert {p.name for p in maps.iterdir()} == {"maps.safetensors", "maps.json", "SHA256SUMS"}
    before = times(maps)
    sae.lens(text=TEXT + " and", name="two", **settings)
    assert f"lens: {maps} is finished already and is reused" in capsys.readouterr().err
    assert times(maps) == before
    sae.lens(text=TEXT, name="two", **settings | {"n_held_out_tokens": 64})
    assert times(maps) != before
    about = json.loads((run / "lens" / "one" / "lens.json").read_text())
    assert [line["layer"] for line in about["judged"]["layers"]] == [0, 1]
    model = sae.model(about["model"], device="cpu")
    assert model.lens(TEXT, tuned=maps).table == found.table
    head, columns, *lines = found.as_text().splitlines()
    assert "Tuned lens" in head
    assert columns.split() == ["first", "p", "KL", "rank"] * 2
    assert len(lines) == 4


def test_texts_and_models_that_cannot_be_read_are_refused(refused, tiny_model, encoder):
    model = f"model={tiny_model}"
    refused("text=", model, fragments=["text is empty; write something"])
    refused("the " * 200, model, fragments=["tokens, but the model reads only 128 at once"])
    refused(TEXT, f"model={encoder}", fragments=[str(encoder), "predicts no next"])
    refused(TEXT, model, "n_top=0", fragments=["n_top=0"])
    refused(TEXT, model, "name=a/b", fragments=["name=a/b cannot be the name of a folder"])
    refused(TEXT, model, "n_held_out_tokens=5", fragments=["it is only used with tuned=true"])


def test_a_model_without_one_stream_of_blocks_is_refused(refused, tiny_model, monkeypatch):
    monkeypatch.setattr("sae.lenses.streams.probe", lambda _: Probe())
    fragments = ["LlamaForCausalLM has no blocks that pass on a single stream of activations"]
    refused(TEXT, f"model={tiny_model}", fragments=fragments)


def test_caches_that_a_tuned_lens_cannot_use_are_refused(refused, tiny_run, tmp_path, run):
    words = [TEXT, "tuned=true"]
    refused(
        *words, fragments=["cache.zarr is not an activation cache; make one with: sae harvest"]
    )
    wanted = "hook_names=[blocks.1.hook_resid_post,blocks.2.hook_resid_post]"
    place = f"sae harvest run={tmp_path} cache={tmp_path}/streams.zarr"
    fragments = ["a tuned lens also needs blocks.2.hook_resid_post", wanted, place]
    refused(*words, f"cache={tiny_run}/cache.zarr", f"run={tmp_path}", fragments=fragments)
    fragments = ["model=gpt2 has no effect with tuned=true"]
    refused(*words, "model=gpt2", f"run={run}", fragments=fragments)


def test_a_cache_of_a_model_that_has_changed_is_refused(tmp_path, tiny_text, tokenizer_folder):

    folder = tmp_path / "model"
    save_tiny_model("llama", folder, tokenizer_folder, seed=1)
    settings = harvest_settings(tmp_path / "own", folder, tiny_text) | {"hook_names": STREAMS}
    sae.harvest(**settings | {"n_tokens": 1024})
    save_tiny_model("llama", folder, tokenizer_folder, seed=2)
    with pytest.raises(UserError, match=r"now has other weights \(digest"):
        sae.lens(text=TEXT, run=str(tmp_path / "own"), tuned=True)
