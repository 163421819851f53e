"""Tiny encoders: a word-piece tokenizer, a BERT, and a run with a dictionary of it."""

import shutil
from pathlib import Path

import pytest
import torch
from support.world import harvest_settings, sentences

import sae

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, _, CLS, SEP, _ = range(5)


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with a class token and a separator, and no beginning or end."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer()
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=SPECIAL, show_progress=False
    )
    pieces.train_from_iterator(sentences(200), trainer)
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
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
