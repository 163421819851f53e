"""An activation that the package has not got: the whole house takes it or says why not."""

import json
import os
import re
import shutil
from dataclasses import replace

import pytest
import torch
from support.files import unseal
from support.powered import Powered
from support.world import HOOK, training_json

import sae
from sae.architectures import StandardConfig
from sae.atlas.atlas import Atlas
from sae.base.errors import UserError
from sae.dictionary import ACTIVATIONS, Dictionary
from sae.dictionary.files import load_dictionary, loads_in_saelens, save_dictionary
from sae.dictionary.folding import (
    for_raw_activations,
    scaled_by_decoder_norm,
    with_b_dec,
    without_b_dec,
)
from sae.dictionary.metadata import metadata_of
from sae.dictionary.storage import DTYPES, as_loaded
from sae.exchange.dashboards.exporting import export_atlas
from sae.exchange.formats import WRITTEN, write_dictionary
from sae.exchange.saebench import as_custom_sae


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """The activation is in the registry, and nothing else is done for it."""
    monkeypatch.setitem(ACTIVATIONS, Powered.name, Powered)


def powered(d_in=32, d_out=None, *, skip=False) -> Dictionary:
    draw = torch.Generator().manual_seed(7)
    width = d_in if d_out is None else d_out
    activation = Powered(
        torch.rand(48, generator=draw), 0.5 + torch.rand(48, generator=draw), 2
    )
    found = Dictionary.from_weights(
        torch.randn(d_in, 48, generator=draw) / d_in**0.5,
        torch.randn(48, generator=draw),
        torch.randn(48, width, generator=draw) / 7,
        torch.randn(width, generator=draw),
        activation,
    ).placed(HOOK, HOOK if d_out is None else "blocks.1.hook_mlp_out")
    W_skip = torch.randn(width, d_in, generator=draw) / d_in**0.5
    return replace(found, W_skip=W_skip) if skip else found


KINDS = {
    "autoencoder": ({}, "powered"),
    "transcoder": ({"d_out": 20}, "powered_transcoder"),
    "skip transcoder": ({"d_out": 20, "skip": True}, "powered_skip_transcoder"),
}


def rows(n=300):
    return 2 * torch.randn(n, 32, generator=torch.Generator().manual_seed(3))


def same(found, expected, x=None):
    x = rows() if x is None else x
    torch.testing.assert_close(found.encode(x), expected.encode(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found(x), expected(x), rtol=1e-4, atol=1e-4)


def test_its_sparse_encoding_equals_the_dense_one():
    support, values = powered().encode_sparse(rows())
    expected = powered().encode(rows())
    assert 0.05 < float((expected > 0).float().mean()) < 0.8
    torch.testing.assert_close(support.matrix(values).to_dense(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_it_comes_back_from_its_folder_in_every_type(kind, dtype, tmp_path):
    settings, word = KINDS[kind]
    dictionary = powered(**settings)
    save_dictionary(dictionary, tmp_path / "one", dtype)
    config = json.loads((tmp_path / "one/cfg.json").read_text())
    assert (config["architecture"], config["power"]) == (word, 2)
    again = load_dictionary(tmp_path / "one")
    assert again.digest == as_loaded(dictionary, dtype).digest
    assert type(again.activation) is Powered
    assert metadata_of(again).items() >= metadata_of(dictionary).items()
    assert not loads_in_saelens(dictionary, dtype)
    same(again, as_loaded(dictionary, dtype))


def test_its_digest_covers_its_tensors_and_its_number():
    one = powered()
    digests = [one.digest, replace(one, activation=replace(one.activation, power=3)).digest]
    digests += [one.with_weights({n: w + 1}).digest for n, w in one.tensors.items()]
    assert len({*digests}) == 2 + len(one.tensors) == 8


@pytest.mark.parametrize("power", [None, 2.0, "two", True])
def test_a_number_that_its_file_has_not_got_is_asked_for(power, tmp_path):
    save_dictionary(powered(), tmp_path / "one")
    path = tmp_path / "one/cfg.json"
    unseal(path.parent)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"power": power}))
    with pytest.raises(UserError, match=r"power=.*; a powered dictionary needs a whole number"):
        load_dictionary(tmp_path / "one")


def test_where_it_is_not_known_its_folder_is_refused(tmp_path, monkeypatch):
    save_dictionary(powered(), tmp_path / "one")
    monkeypatch.delitem(ACTIVATIONS, Powered.name)
    with pytest.raises(UserError, match="architecture powered is not known; known: standard"):
        load_dictionary(tmp_path / "one")


def test_it_is_folded_moved_and_cut_like_any_other():
    one, kept = powered(), torch.tensor([3, 5, 40])
    torch.testing.assert_close(one.of_latents(kept).encode(rows()), one.encode(rows())[:, kept])
    same(without_b_dec(with_b_dec(one)), one)
    norms = one.W_dec.norm(dim=1)
    scaled = scaled_by_decoder_norm(one)
    torch.testing.assert_close(scaled.W_dec.norm(dim=1), torch.ones(48))
    torch.testing.assert_close(scaled.encode(rows()), one.encode(rows()) * norms)
    torch.testing.assert_close(scaled(rows()), one(rows()))
    raw = for_raw_activations(one, 0.5, 0.25)
    torch.testing.assert_close(raw(rows()), one(0.5 * rows()) / 0.25, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WRITTEN)
def test_a_format_of_another_tool_says_why_it_has_no_place_for_it(name, kind, tmp_path):
    dictionary = powered(**KINDS[kind][0])
    reason = WRITTEN[name].cannot_hold(dictionary)
    assert (reason is None) == (name == "saelens")
    if reason is not None:
        with pytest.raises(UserError, match=f"format={name} cannot hold a powered .*{reason}"):
            write_dictionary(dictionary, tmp_path / "one", name)


def test_saebench_is_given_what_it_computes():
    dictionary = powered()
    dictionary = replace(dictionary, record=replace(dictionary.record, model_name="org/lm"))
    custom = as_custom_sae(dictionary)
    assert custom.cfg.architecture == "powered"
    expected = dictionary.encode(rows()) * dictionary.W_dec.norm(dim=1)
    torch.testing.assert_close(custom.encode(rows()), expected)
    torch.testing.assert_close(custom(rows()), dictionary(rows()))
    assert custom.half().encode(rows().half()).dtype == torch.float16


# From a run's dictionaries through every stage


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A run with the tiny run's cache and a dictionary of the activation alone."""
    folder = tmp_path_factory.mktemp("fifth") / "run"
    shutil.copytree(tiny_run / "cache.zarr", folder / "cache.zarr")
    cache, one = sae.open_cache(folder / "cache.zarr"), powered()
    trained = sae.load(str(tiny_run / "dictionaries/weak"))
    record = replace(trained.record, training=None)
    placed = replace(one.placed(cache.site(HOOK)), record=record)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ACTIVATIONS, Powered.name, Powered)
        save_dictionary(placed, folder / "dictionaries/one")
        sae.eval(run=str(folder), n_behaviour_tokens=64)
        sae.analyze(run=str(folder), n_contexts=3)
    return folder


def test_it_is_evaluated_and_analyzed(run):
    figures = json.loads((run / "evals/one.json").read_text())
    assert figures["architecture"] == "powered"
    assert figures["l0"] > 0
    manifest = json.loads((run / "atlas/one/atlas.json").read_text())
    assert manifest["architecture"] == "powered"
    table = Atlas(run / "atlas/one").features()
    assert sum(row["n_active"] > 0 for row in table) > 10


@pytest.mark.parametrize("words", [{}, {"dtype": "int8"}, {"drop_dead": True}], ids=str)
def test_the_card_of_its_export_computes_what_it_does(run, words, tmp_path, monkeypatch):
    folder = sae.export(run=str(run), out=str(tmp_path / "out"), **words)
    card = (folder / "README.md").read_text()
    assert "It is a `powered` one: activations are `size * relu(pre - offset) ** power`" in card
    assert "`power = 2`" in card
    assert "library_name: sae-atlas" in card
    assert "sae_lens" not in card
    found = dict(re.findall(r"^### ([^\n]+)\n\n```python\n(.*?)\n```", card, re.S | re.M))
    monkeypatch.chdir(folder)
    assert os.path.exists(f"{HOOK}/cfg.json")
    alone: dict = {}
    exec(found["With torch and safetensors alone"], alone)
    ours = sae.load(str(folder / HOOK))
    torch.testing.assert_close(alone["acts"], ours.encode(alone["x"]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone["x_hat"], ours(alone["x"]), rtol=1e-5, atol=1e-5)


def test_a_format_that_cannot_hold_it_is_refused_by_export_in_a_sentence(run, tmp_path):
    with pytest.raises(UserError, match="format=sparsify cannot hold a powered autoencoder"):
        sae.export(run=str(run), out=str(tmp_path / "out"), format="sparsify")
    assert not (tmp_path / "out").exists()


def test_it_steers_and_its_atlas_goes_to_other_tools(run, tmp_path):
    (result,) = sae.steer(run=str(run), n_features=1, max_new_tokens=2)["features"]
    assert result["norm_at_strength_one"] > 0
    place = {"model_id": "tiny-llama", "source": "1-res-mine"}
    for format in ("neuronpedia", "saedashboard"):
        folder = export_atlas(run / "atlas/one", tmp_path / format, format, fold=True, **place)
        assert any(folder.iterdir())


def test_it_is_imported_and_no_training_begins_with_it(run, tmp_path):
    shutil.copytree(run / "cache.zarr", tmp_path / "cache.zarr")
    folder = str(run / "dictionaries/one")
    found = sae.import_(folder=folder, run=str(tmp_path), name="again")
    assert found.digest == sae.load(folder).digest
    with pytest.raises(UserError, match="powered, but sae=standard makes a standard one; give"):
        sae.train(
            run=str(tmp_path),
            init_from=folder,
            sae=StandardConfig(d_sae=48),
            training_tokens=1_000,
            train_batch_size_tokens=100,
        )


def test_a_record_says_how_it_was_trained_as_of_any_other(tmp_path):
    about = training_json(architecture="powered", sae={"power": 2})
    save_dictionary(powered(), tmp_path / "one")
    path = tmp_path / "one/cfg.json"
    config = json.loads(path.read_text())
    config["metadata"]["sae_atlas"] = about
    unseal(path.parent)
    path.write_text(json.dumps(config))
    assert load_dictionary(tmp_path / "one").record.training.architecture == "powered"
