"""Dictionaries as files, and the real SAELens reading them."""

import json
import shutil

import pytest
import torch

import sae
from sae.exchange.saelens import load_dictionary, save_dictionary


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    run = tmp_path_factory.mktemp("exported") / "run"
    shutil.copytree(tiny_run, run)
    sae.eval(run=str(run), dictionary="strong", n_behaviour_tokens=128)
    sae.analyze(run=str(run), dictionary="strong")
    return run, sae.export(run=str(run), dictionary="strong")


def rows(tiny_run):
    cache = sae.open_cache(tiny_run / "cache.zarr")
    return cache.read("blocks.1.hook_resid_post", slice(0, 8))[:, 1:].reshape(-1, 32).float()


def test_a_saved_dictionary_loads_bit_equal(tiny_run, tmp_path):
    dictionary = sae.load(str(tiny_run / "dictionaries/strong"))
    save_dictionary(dictionary, tmp_path / "copy")
    again = load_dictionary(tmp_path / "copy")
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(dictionary, name), getattr(again, name))
    assert again.metadata == dictionary.metadata


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_saelens_loads_an_export_and_computes_the_same(exported, tiny_run):
    sae_lens = pytest.importorskip("sae_lens")
    folder = exported[1] / "blocks.1.hook_resid_post"
    theirs = sae_lens.SAE.load_from_disk(str(folder))
    ours = sae.load(str(folder))
    x = rows(tiny_run)
    with torch.no_grad():
        feature_acts = theirs.encode(x)
        torch.testing.assert_close(feature_acts, ours.encode(x), rtol=1e-5, atol=1e-5)
        decoded = theirs.decode(feature_acts)
    torch.testing.assert_close(decoded, ours.decode(ours.encode(x)), rtol=1e-5, atol=1e-5)
    assert theirs.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
    assert theirs.cfg.metadata.model_name == ours.model_name
    assert theirs.cfg.metadata.sae_atlas["digest"] == ours.metadata["sae_atlas"]["digest"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_folder_that_saelens_saved_loads_here_and_computes_the_same(tmp_path, tiny_run):
    sae_lens = pytest.importorskip("sae_lens")
    torch.manual_seed(0)
    theirs = sae_lens.StandardSAE(
        sae_lens.StandardSAEConfig(d_in=32, d_sae=48, apply_b_dec_to_input=True)
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter))
    theirs.save_model(tmp_path / "theirs")
    ours = sae.load(str(tmp_path / "theirs"))
    x = rows(tiny_run)
    with torch.no_grad():
        expected = theirs.encode(x)
        torch.testing.assert_close(ours.encode(x), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours(x), theirs.decode(expected), rtol=1e-4, atol=1e-3)


def test_an_export_holds_the_dictionary_the_tables_and_a_card(exported):
    _, folder = exported
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    inner = "blocks.1.hook_resid_post"
    assert found == {
        "README.md",
        "features.parquet",
        "contexts.parquet",
        "export.json",
        f"{inner}/cfg.json",
        f"{inner}/sae_weights.safetensors",
        f"{inner}/sparsity.safetensors",
    }
    config = json.loads((folder / inner / "cfg.json").read_text())
    assert config["normalize_activations"] == "none"
    assert config["metadata"]["sae_lens_version"] >= "6.0.0"


def test_the_cards_metadata_and_figures_are_those_of_the_run(exported):
    from huggingface_hub import RepoCard

    run, folder = exported
    card = RepoCard.load(folder / "README.md")
    assert card.data.library_name == "saelens"
    assert {c["config_name"] for c in card.data.configs} == {"features", "contexts"}
    figures = json.loads((run / "evals/strong.json").read_text())
    assert f"{figures['explained_variance']:.4g}" in card.text
    assert f"{figures['ce_loss_score']:.4g}" in card.text


def test_the_tables_load_as_a_data_set(exported, tmp_path):
    from datasets import load_dataset

    _, folder = exported
    features = load_dataset(
        "parquet",
        data_files=str(folder / "features.parquet"),
        split="train",
        cache_dir=str(tmp_path),
    )
    assert features.num_rows == 64
    assert features[3]["feature"] == 3


def test_an_export_is_reused_and_a_foreign_folder_is_refused(exported, tmp_path):
    run, folder = exported
    stamp = (folder / "README.md").stat().st_mtime_ns
    assert sae.export(run=str(run), dictionary="strong") == folder
    assert (folder / "README.md").stat().st_mtime_ns == stamp
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="no export"):
        sae.export(run=str(run), dictionary="strong", out=str(tmp_path / "mine"))
    assert (tmp_path / "mine/letter.txt").read_text() == "dear"


def test_what_was_measured_on_other_weights_is_not_exported(exported, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(exported[0], run)
    changed = sae.load(str(run / "dictionaries/weak"))
    shutil.rmtree(run / "dictionaries/strong")
    save_dictionary(changed, run / "dictionaries/strong")
    with pytest.raises(ValueError, match="changed since it was measured; run again: sae eval"):
        sae.export(run=str(run), dictionary="strong")
    with pytest.raises(ValueError, match="run again: sae analyze"):
        sae.steer(run=str(run), dictionary="strong")


def test_a_dictionary_that_was_not_finished_is_not_seen(exported, tmp_path):
    from sae.stages.common import dictionary_names

    shutil.copytree(exported[0] / "dictionaries", tmp_path / "dictionaries")
    shutil.copytree(
        tmp_path / "dictionaries/weak", tmp_path / "dictionaries/.weak.01234567.partial"
    )
    assert dictionary_names(tmp_path) == ["strong", "weak"]
