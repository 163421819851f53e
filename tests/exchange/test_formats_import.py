"""`sae import` and `sae export format=...`: foreign dictionaries in a run, ours in theirs."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from support.world import HOOK, random_dictionary

import sae
from sae.base.errors import UserError
from sae.cli import main
from sae.dictionary.files import save_dictionary
from sae.dictionary.metadata import metadata_of
from sae.exchange.formats import read_dictionary, write_dictionary
from sae.exchange.importing import ImportConfig, belonging


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A copy of the tiny run's cache, and one of its dictionaries as sparsify has them."""
    folder = tmp_path_factory.mktemp("imports") / "run"
    shutil.copytree(tiny_run / "cache.zarr", folder / "cache.zarr")
    return folder


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """sparsify's folder of a hookpoint, without anything of ours beside it."""
    folder = tmp_path_factory.mktemp("foreign") / "layers.1"
    write_dictionary(random_dictionary("topk"), folder, "sparsify")
    (folder / "sae_atlas.json").unlink()
    return folder


def said_in(folder):
    return json.loads((folder / "cfg.json").read_text())["metadata"]


@pytest.mark.slow
def test_a_foreign_dictionary_goes_through_every_stage(run, foreign, tiny_model):
    assert main(["import", str(foreign), f"run={run}", "name=theirs"]) == 0
    about = said_in(run / "dictionaries/theirs")
    assert about["model_name"] == str(tiny_model)
    assert about["hook_name"] == HOOK
    assert about["hf_hook_name"] == "model.layers.1"
    (figures,) = sae.eval(run=str(run), dictionary="theirs", n_behaviour_tokens=64)
    assert 0 < figures.values["l0"] <= 7
    assert len(sae.analyze(run=str(run), dictionary="theirs").features()) == 48
    steered = sae.steer(
        run=str(run),
        dictionary="theirs",
        n_features=1,
        prompts=["the river", "a mill", "she", "it was"],
        max_new_tokens=2,
    )
    assert steered["features"][0]["feature"] < 48
    exported = sae.export(run=str(run), dictionary="theirs", format="sparsify")
    assert exported == run / "export/theirs-sparsify"
    again, theirs = read_dictionary(exported / "layers.1"), read_dictionary(foreign)
    torch.testing.assert_close(again.b_enc, theirs.b_enc)
    card = (exported / "README.md").read_text()
    assert "`layers.1`" in card
    assert str(foreign) not in card
    assert 'Sae.load_from_disk("layers.1")' in card
    assert "SAELens" not in card
    assert "## Training" not in card
    assert not (exported / "layers.1/sparsity.safetensors").exists()


def test_an_import_is_recognised_and_another_one_does_not_take_its_name(run, foreign, tmp_path):
    first = sae.import_(folder=str(foreign), run=str(run))
    stamp = (run / "dictionaries/layers.1/cfg.json").stat().st_mtime_ns
    assert sae.import_(folder=str(foreign), run=str(run)).digest == first.digest
    assert (run / "dictionaries/layers.1/cfg.json").stat().st_mtime_ns == stamp
    write_dictionary(random_dictionary("topk", d_sae=40), tmp_path / "layers.1", "sparsify")
    with pytest.raises(UserError, match=r"is another dictionary; give this one another name="):
        sae.import_(folder=str(tmp_path / "layers.1"), run=str(run))


def test_without_a_cache_the_model_is_taken_by_its_name(foreign, tiny_model, tmp_path):
    with pytest.raises(UserError, match=r"does not say which model it is of; give model_name="):
        sae.import_(folder=str(foreign), run=str(tmp_path))
    found = sae.import_(folder=str(foreign), run=str(tmp_path), model_name=str(tiny_model))
    record = metadata_of(found)["sae_atlas"]["model"]
    assert (record["hub_id"], record["weight_digest"]) == (str(tiny_model), "unknown")
    assert record["causal"]


@pytest.mark.slow
def test_a_folder_of_llama_scope_r1_distill_is_imported(run, tiny_model, tmp_path):
    theirs, folder = random_dictionary("jumprelu", hook_name=HOOK), tmp_path / "L1R"
    write_dictionary(theirs, folder, "openmoss")
    (folder / "sae_atlas.json").unlink()
    linear = {
        "encoder.weight": theirs.W_enc.t().contiguous(),
        "encoder.bias": theirs.b_enc,
        "decoder.weight": theirs.W_dec.t().contiguous(),
        "decoder.bias": theirs.b_dec,
        "log_jumprelu_threshold": theirs.activation.threshold.log(),
    }
    save_file(linear, folder / "sae_weights.safetensors")
    assert main(["import", str(folder), f"run={run}"]) == 0
    found = sae.load(str(run / "dictionaries/L1R"))
    assert (found.hook_name, found.model_name) == (HOOK, str(tiny_model))
    torch.testing.assert_close(found.activation.threshold, theirs.activation.threshold)
    assert torch.equal(found.W_enc, theirs.W_enc)


@pytest.mark.slow
def test_the_embedded_model_is_found_by_its_name_on_the_hub(tmp_path):
    about = {"model_name": "HuggingFaceTB/SmolLM2-135M-Instruct", "hook_name": HOOK}
    save_dictionary(random_dictionary("standard", d_in=576, **about), tmp_path / "one")
    found = sae.import_(folder=str(tmp_path / "one"), run=str(tmp_path))
    assert metadata_of(found)["sae_atlas"]["model"]["name"] == "smollm2"
    assert found.model_name == about["model_name"]


def test_a_dictionary_of_another_model_than_the_caches_is_refused(run, foreign, tiny_model):
    with pytest.raises(
        UserError, match=r"belongs to gpt2, but .*; if these are the same model, give mo"
    ):
        sae.import_(folder=str(foreign), run=str(run), model_name="gpt2", name="x")
    # TransformerLens leaves out the owner.
    short = tiny_model.name
    found = sae.import_(folder=str(foreign), run=str(run), model_name=short, name="short")
    assert found.model_name == str(tiny_model)


@pytest.mark.parametrize(
    ("metadata", "settings", "sentence"),
    [
        ({}, {}, r"does not say which hook it reads; give hook_name=\.\.\."),
        ({"hook_name": HOOK}, {"d_out": 20}, "does not say which hook it reconstructs; give"),
        ({"hook_name": HOOK}, {"d_in": 31}, "has width 31 at blocks.1.hook_resid_post, where"),
        ({"hook_name": "blocks.7.hook_resid_post"}, {}, "layer 7 is out of range"),
    ],
)
def test_what_a_run_cannot_use_is_refused(metadata, settings, sentence, run, tmp_path):
    save_dictionary(random_dictionary("standard", **settings, **metadata), tmp_path / "one")
    with pytest.raises(UserError, match=sentence):
        sae.import_(folder=str(tmp_path / "one"), run=str(run))
    assert not (run / "dictionaries/one").exists()


def test_hooks_given_by_hand_come_before_names_that_are_none_of_this_model(run, tmp_path):
    theirs = random_dictionary("jumprelu", d_out=32, skip=True, hook_name="mlp_in_of_1")
    save_dictionary(theirs, tmp_path / "one")
    found = sae.import_(
        folder=str(tmp_path / "one"),
        run=str(run),
        hook_name="layers.1.post_attention_layernorm",
        hook_name_out="layers.1.mlp",
    )
    assert found.hook_name == "model.layers.1.post_attention_layernorm"
    assert found.hook_name_out == "blocks.1.hook_mlp_out"
    assert found.is_transcoder


def test_what_we_trained_keeps_its_record_on_the_way_through_another_format(
    tiny_run, run, tmp_path
):
    ours = sae.load(str(tiny_run / "dictionaries/strong"))
    write_dictionary(ours, tmp_path / "gemma", "gemma_scope")
    found = sae.import_(folder=str(tmp_path / "gemma"), run=str(run), name="back")
    kept = metadata_of(found)["sae_atlas"]
    record = metadata_of(ours)["sae_atlas"]
    for key in ("model", "data", "max_norm_multiple"):
        assert kept[key] == record[key]
    # Not where it would say that this run trained it.
    assert kept["imported"] == {"from": "gemma", "format": None, "record": record}
    assert not {"digest", "identity", "training_tokens"} & {*kept}


def test_words_of_the_command_line_name_the_folder(run, foreign, capsys, tmp_path):
    odd = tmp_path / "it's a=b, {c}"
    shutil.copytree(foreign, odd / "layers.1")
    words = [f"run={run}", "format=sparsify", "name=odd"]
    assert main(["import", str(odd / "layers.1"), *words]) == 0
    assert (run / "dictionaries/odd/cfg.json").exists()
    assert main(["import", f"run={run}"]) == 2
    assert "write sae import FOLDER [key=value ...], such as: sae" in capsys.readouterr().err
    assert main(["import", str(foreign), "name=../x"]) == 2
    assert "is no name of one folder" in capsys.readouterr().err
    assert main(["import", str(foreign), "format=sparse"]) == 2
    assert (
        "format=sparse is unknown; choose one of saelens, sparsify" in capsys.readouterr().err
    )


def test_an_export_in_a_format_without_a_place_for_it_is_refused_first(tiny_run):
    with pytest.raises(UserError, match="sparsify cannot hold a standard autoencoder"):
        sae.export(run=str(tiny_run), dictionary="strong", format="sparsify")
    with pytest.raises(UserError, match="format=other is unknown"):
        sae.export(run=str(tiny_run), dictionary="strong", format="other")


@pytest.mark.slow
def test_an_export_of_what_we_trained_in_another_format_has_tables_and_a_card(
    tiny_run, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    sae.eval(run=str(run), dictionary="strong", n_behaviour_tokens=64)
    sae.analyze(run=str(run), dictionary="strong")
    folder = sae.export(run=str(run), dictionary="strong", format="dictionary_learning")
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert found == {
        "README.md",
        "features.parquet",
        "contexts.parquet",
        "labels.csv",
        "decoder.safetensors",
        "export.json",
        f"{HOOK}/ae.pt",
        f"{HOOK}/config.json",
        f"{HOOK}/sae_atlas.json",
    }
    card = (folder / "README.md").read_text()
    assert f'load_dictionary("{HOOK}", "cpu")' in card
    assert "## Training" in card
    assert "library_name: sae-atlas" in card
    assert sae.export(run=str(run), dictionary="strong") == run / "export/strong"


# The module that a file names says more than the name of its hook.


@pytest.mark.parametrize(
    ("hook_name", "path", "expected"),
    [
        # SAELens calls what the norm gives, which the MLP reads, by a name of the stream.
        ("blocks.1.hook_mlp_in", "model.layers.1.post_attention_layernorm.output", None),
        ("blocks.1.hook_mlp_in", "model.layers.1.post_attention_layernorm.input", "resid_mid"),
        ("blocks.1.hook_resid_mid", "model.layers.1.post_attention_layernorm", "resid_mid"),
        ("blocks.1.hook_resid_post", "layers.1", "resid_post"),
        ("blocks.1.hook_mlp_out", "some.other.module", "mlp_out"),
    ],
)
def test_a_file_that_names_a_module_is_of_that_place(hook_name, path, expected, tiny_model):
    about = {"hook_name": hook_name, "hf_hook_name": path, "model_name": str(tiny_model)}
    config = ImportConfig(folder="one", model_name=str(tiny_model))
    site = belonging(config, random_dictionary(**about)).reads[0].site
    module = "model.layers.1.post_attention_layernorm"
    assert site.hook_name == (f"blocks.1.hook_{expected}" if expected else module)
    if expected in (None, "resid_mid"):
        assert (site.module, site.side) == (module, "input" if expected else "output")


def test_a_block_of_bert_returns_a_stream_that_went_through_a_norm(encoder, tmp_path):
    write_dictionary(random_dictionary("topk"), tmp_path / "encoder.layer.1", "sparsify")
    (tmp_path / "encoder.layer.1/sae_atlas.json").unlink()
    found = read_dictionary(tmp_path / "encoder.layer.1")
    config = ImportConfig(folder="one", model_name=str(encoder))
    site = belonging(config, found).reads[0].site
    assert (site.module, site.side) == ("encoder.layer.1", "output")
    assert site.hook_name == "blocks.1.hook_normalized_resid_post"
