"""Encoders: how they are loaded, and which stages they have nothing for."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import harvest_settings, random_dictionary, sentences

import sae
from sae.base.errors import UserError
from sae.exchange.saelens import save_dictionary
from sae.models.load import ModelConfig, is_causal, load_model, load_skeleton
from sae.models.unembed import unembedding

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, _, CLS, SEP, _ = range(5)


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with a class token and a separator, and no beginning or end."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer()
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=SPECIAL, show_progress=False
    )
    pieces.train_from_iterator(sentences(200), trainer)
    folder = tmp_path_factory.mktemp("wordpiece")
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    settings = dict(zip(names, SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=pieces, **settings).save_pretrained(folder)
    return folder


def save_tiny_encoder(architecture: str, folder: Path, wordpiece: Path) -> Path:
    import transformers

    config = transformers.BertConfig(
        vocab_size=400,
        num_hidden_layers=3,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(transformers, architecture)(config).save_pretrained(folder)
    shutil.copytree(wordpiece, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, wordpiece: Path) -> Path:
    """A BERT of width 32 in a folder."""
    return save_tiny_encoder("BertModel", tmp_path_factory.mktemp("bert"), wordpiece)


@pytest.fixture(scope="module")
def encoder_run(
    tmp_path_factory: pytest.TempPathFactory, encoder: Path, tiny_text: Path
) -> Path:
    """A run with one dictionary of the encoder."""
    run = tmp_path_factory.mktemp("runs") / "encoder"
    sae.harvest(**harvest_settings(run, encoder, tiny_text) | {"n_tokens": 2048})
    sae.train(
        run=str(run),
        name="small",
        sae=sae.StandardConfig(d_sae=64, l1_coefficient=0.5),
        training_tokens=4096,
        train_batch_size_tokens=256,
    )
    return run


def test_an_encoder_puts_its_class_token_before_and_its_separator_after_documents(encoder):
    model = load_model(ModelConfig(name=str(encoder)))
    assert not model.causal
    assert (model.bos_token_id, model.end_token_id, model.pad_token_id) == (CLS, SEP, PAD)
    assert model.special_token_ids == list(range(5))


def test_a_causal_model_has_no_separator_and_pads_with_what_it_has(tiny_model):
    model = load_model(ModelConfig(name=str(tiny_model)))
    assert model.causal
    assert (model.bos_token_id, model.end_token_id, model.pad_token_id) == (0, None, 1)


def test_the_class_token_of_an_encoder_wins_over_a_beginning_token(encoder, tmp_path):
    from transformers import AutoTokenizer

    folder = shutil.copytree(encoder, tmp_path / "both")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = "[MASK]"
    tokenizer.save_pretrained(folder)
    assert load_model(ModelConfig(name=str(folder))).bos_token_id == CLS


def test_a_causal_model_takes_its_class_token_where_it_has_no_beginning(
    tiny_model, encoder, tmp_path
):
    folder = shutil.copytree(tiny_model, tmp_path / "causal")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(encoder / file, folder)
    model = load_model(ModelConfig(name=str(folder)))
    assert model.causal
    assert (model.bos_token_id, model.end_token_id, model.pad_token_id) == (CLS, None, PAD)


def test_a_model_without_a_head_is_read_like_an_encoder(tiny_model, tmp_path):
    from transformers import AutoModel

    folder = shutil.copytree(tiny_model, tmp_path / "headless")
    AutoModel.from_pretrained(tiny_model).save_pretrained(folder)
    config = ModelConfig(name=str(folder))
    assert not is_causal(config)
    model = load_model(config)
    assert type(model.module).__name__ == type(load_skeleton(config)).__name__ == "LlamaModel"
    assert (model.bos_token_id, model.end_token_id) == (0, None)


def test_a_configuration_that_names_no_architecture_is_causal_where_its_family_is(
    tiny_model, tmp_path
):
    folder = shutil.copytree(tiny_model, tmp_path / "unnamed")
    settings = json.loads((folder / "config.json").read_text())
    del settings["architectures"]
    (folder / "config.json").write_text(json.dumps(settings))
    assert is_causal(ModelConfig(name=str(folder)))
    (folder / "config.json").write_text(json.dumps({"model_type": "distilbert"}))
    assert not is_causal(ModelConfig(name=str(folder)))


def test_weights_that_a_checkpoint_lacks_do_not_count_if_nothing_reads_them(
    tmp_path, wordpiece, encoder
):
    # Its pooler is made up anew at every loading.
    folder = save_tiny_encoder("BertForMaskedLM", tmp_path, wordpiece)
    first, second = (load_model(ModelConfig(name=str(folder))) for _ in range(2))
    pooled = [model.module.pooler.dense.weight for model in (first, second)]
    assert not torch.equal(*pooled)
    assert first.digest == second.digest
    assert first.digest != load_model(ModelConfig(name=str(encoder))).digest


def test_weights_that_a_checkpoint_lacks_and_that_are_read_are_missed(encoder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(encoder, tmp_path / "torn")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"lacks 1 of its weights, encoder\.layer\.1\.output\.dense\.weight"
    ):
        load_model(ModelConfig(name=str(folder)))


def test_an_encoder_has_no_logits_to_push(encoder):
    assert unembedding(load_model(ModelConfig(name=str(encoder))).module) is None


def test_an_encoder_with_a_decoder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    for load in (is_causal, load_skeleton, load_model):
        with pytest.raises(UserError, match=r"an encoder and a decoder \(t5\)"):
            load(ModelConfig(name=str(tmp_path)))


def test_evaluation_of_an_encoder_measures_reconstruction_and_says_what_it_leaves_out(
    encoder_run, capsys
):
    (figures,) = sae.eval(run=str(encoder_run))
    assert 0 < figures["explained_variance"] < 1
    assert figures["l0"] > 0
    assert figures["n_behaviour_tokens"] == 0
    assert not [name for name in figures if name.startswith(("ce_", "kl_"))]
    said = [line for line in capsys.readouterr().err.splitlines() if "next token" in line]
    assert len(said) == 1
    assert "CE and KL are left out" in said[0]


def test_steering_with_a_dictionary_of_an_encoder_is_refused_before_its_weights_are_read(
    encoder_run, monkeypatch
):
    monkeypatch.setattr("sae.stages.common.load_model", lambda _: pytest.fail("was loaded"))
    with pytest.raises(UserError, match=r"small is a dictionary of .* predicts no next token"):
        sae.steer(run=str(encoder_run))


def test_a_dictionary_from_elsewhere_that_records_no_model_is_not_taken_for_an_encoders(
    tmp_path,
):
    save_dictionary(random_dictionary(), tmp_path / "dictionaries" / "foreign")
    with pytest.raises(UserError, match="run first: sae analyze"):
        sae.steer(run=str(tmp_path))
