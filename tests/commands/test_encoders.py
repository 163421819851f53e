"""Encoders: how they are loaded, and which stages they have nothing for."""

import json
import shutil

import pytest
import torch
from support.encoders import CLS, PAD, SEP, save_tiny_encoder
from support.world import random_dictionary

import sae
from sae.base.errors import UserError
from sae.dictionary.files import save_dictionary
from sae.models.load import ModelConfig, load_model, load_skeleton
from sae.models.unembed import unembedding
from sae.text.packing import Marks


def test_an_encoder_puts_its_class_token_before_and_its_separator_after_documents(encoder):
    model = load_model(ModelConfig(name=str(encoder)))
    assert not model.record.causal
    assert model.marks == Marks((CLS,), (SEP,), PAD)
    assert model.special_token_ids == list(range(5))


def test_a_causal_model_has_no_separator_and_pads_with_what_it_has(tiny_model):
    model = load_model(ModelConfig(name=str(tiny_model)))
    assert model.record.causal
    assert model.marks == Marks((0,), (), 1)


def test_what_an_encoders_tokenizer_puts_before_a_text_wins_over_its_beginning_token(
    encoder, tmp_path
):
    from transformers import AutoTokenizer

    folder = shutil.copytree(encoder, tmp_path / "both")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = "[MASK]"
    tokenizer.save_pretrained(folder)
    assert load_model(ModelConfig(name=str(folder))).bos_token_id == CLS


def test_a_model_without_a_head_is_read_like_an_encoder(tiny_model, tmp_path):
    from transformers import AutoModel

    folder = shutil.copytree(tiny_model, tmp_path / "headless")
    AutoModel.from_pretrained(tiny_model).save_pretrained(folder)
    config = ModelConfig(name=str(folder))
    assert not config.is_causal()
    model = load_model(config)
    assert type(model.module).__name__ == type(load_skeleton(config)).__name__ == "LlamaModel"
    assert model.marks == Marks((0,), (), 1)


def test_a_configuration_that_names_no_architecture_is_causal_where_its_family_is(
    tiny_model, tmp_path
):
    folder = shutil.copytree(tiny_model, tmp_path / "unnamed")
    settings = json.loads((folder / "config.json").read_text())
    del settings["architectures"]
    (folder / "config.json").write_text(json.dumps(settings))
    assert ModelConfig(name=str(folder)).is_causal()
    (folder / "config.json").write_text(json.dumps({"model_type": "distilbert"}))
    assert not ModelConfig(name=str(folder)).is_causal()


def test_weights_that_a_checkpoint_lacks_do_not_count_if_nothing_reads_them(
    tmp_path, wordpiece, encoder
):
    # Its pooler is made up anew at every loading.
    folder = save_tiny_encoder("BertForMaskedLM", tmp_path, wordpiece)
    first, second = (load_model(ModelConfig(name=str(folder))) for _ in range(2))
    pooled = [model.module.pooler.dense.weight for model in (first, second)]
    assert not torch.equal(*pooled)
    assert first.record.weight_digest == second.record.weight_digest
    whole = load_model(ModelConfig(name=str(encoder)))
    assert first.record.weight_digest != whole.record.weight_digest


def test_weights_that_a_checkpoint_lacks_and_that_are_read_are_missed(encoder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(encoder, tmp_path / "torn")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError,
        match=r"lacks 1 of its weights, for example encoder\.layer\.1\.output\.dense\.weight",
    ):
        load_model(ModelConfig(name=str(folder)))


def test_an_encoder_has_no_logits_to_push(encoder):
    with pytest.raises(UserError, match="no output embedding, so it gives no logits"):
        unembedding(load_model(ModelConfig(name=str(encoder))).module)


def test_an_encoder_with_a_decoder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    for load in (ModelConfig.is_causal, load_skeleton, load_model):
        with pytest.raises(UserError, match=r"an encoder and a decoder \(t5\)"):
            load(ModelConfig(name=str(tmp_path)))


def test_evaluation_of_an_encoder_measures_reconstruction_and_says_what_it_leaves_out(
    encoder_run, capsys
):
    (figures,) = sae.eval(run=str(encoder_run))
    assert 0 < figures.values["explained_variance"] < 1
    assert figures.values["l0"] > 0
    assert figures.n_behaviour_tokens == 0
    assert not [name for name in figures.values if name.startswith(("ce_", "kl_"))]
    said = [line for line in capsys.readouterr().err.splitlines() if "next token" in line]
    assert len(said) == 1
    assert "CE and KL are left out" in said[0]


@pytest.mark.slow
def test_the_atlas_of_an_encoder_says_why_no_tokens_are_promoted(encoder_run, capsys):
    atlas = sae.analyze(run=str(encoder_run), n_contexts=2)
    why = "the model has no output embedding, so it gives no logits"
    assert atlas.record.without_logits == why
    assert "top_logit_ids" not in atlas.features()[0]
    assert f"no promoted tokens: {why}" in capsys.readouterr().err


def test_steering_with_a_dictionary_of_an_encoder_is_refused_before_its_weights_are_read(
    encoder_run, monkeypatch
):
    monkeypatch.setattr("sae.models.load.load_model", lambda _: pytest.fail("was loaded"))
    with pytest.raises(UserError, match=r"small is a dictionary of .* predicts no next token"):
        sae.steer(run=str(encoder_run))


def test_a_dictionary_from_elsewhere_that_records_no_model_is_not_taken_for_an_encoders(
    tmp_path,
):
    save_dictionary(random_dictionary(), tmp_path / "dictionaries" / "foreign")
    with pytest.raises(UserError, match="run first: sae analyze"):
        sae.steer(run=str(tmp_path))
