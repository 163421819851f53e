"""Which class loads a checkpoint, and whether it predicts a next token: asked of the model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import LLAMA_SIZES, SIZES, VISION_SIZES, random_model

from sae.base.errors import UserError
from sae.models.kinds import class_of, is_causal, predicts_next_token
from sae.models.load import ModelConfig, load_model, load_skeleton, record_without_weights

T5 = {"vocab_size": 400, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
XLNET = {"vocab_size": 400, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}
VISION = {"model_type": "clip_vision_model", **VISION_SIZES}
LLAVA = {
    "text_config": {"model_type": "llama", **LLAMA_SIZES},
    "vision_config": VISION,
    "image_token_index": 390,
}


def settings_of(model_type: str, *architectures: str, **others: Any) -> Any:
    from transformers import AutoConfig

    found = AutoConfig.for_model(model_type, **others)
    found.architectures = list(architectures) or None
    return found


@pytest.mark.parametrize(
    ("settings", "kind", "causal"),
    [
        (("llama", "LlamaForCausalLM"), "AutoModelForCausalLM", True),
        (("llama",), "AutoModelForCausalLM", True),
        (("llama", "LlamaModel"), "AutoModel", False),
        (("llama", "LlamaForSequenceClassification"), "AutoModel", False),
        (("bert", "BertForMaskedLM"), "AutoModel", False),
        (("bert", "BertLMHeadModel"), "AutoModel", False),
        (("bart", "BartForCausalLM"), "AutoModelForCausalLM", True),
        (("t5", "T5EncoderModel"), "T5EncoderModel", False),
        (("llava", "LlavaForConditionalGeneration"), "LlavaForConditionalGeneration", True),
        (("qwen2_vl", "Qwen2VLForConditionalGeneration"), "Qwen2VLForConditionalGenera", True),
        (("gemma3", "Gemma3ForConditionalGeneration"), "AutoModelForCausalLM", True),
    ],
)
def test_the_class_that_loads_a_checkpoint_follows_from_the_classes_themselves(
    settings, kind, causal
):
    settings = settings_of(*settings)
    assert class_of(settings, "x").__name__.startswith(kind)
    assert predicts_next_token(settings) == causal


def test_a_bert_that_is_a_decoder_predicts_and_one_that_is_none_does_not():
    settings = settings_of("bert", "BertLMHeadModel", is_decoder=True)
    assert class_of(settings, "x").__name__ == "AutoModelForCausalLM"
    for decoder in (True, False):
        model = random_model("BertLMHeadModel", {**SIZES, "is_decoder": decoder})
        assert is_causal(model, "x") == decoder


@pytest.mark.parametrize(
    ("model_type", "named"),
    [("t5", "T5ForConditionalGeneration"), ("bart", "BartModel"), ("whisper", None)],
)
def test_an_encoder_with_a_decoder_is_refused(model_type, named):
    settings = settings_of(model_type, *([named] if named else []))
    with pytest.raises(UserError, match=rf"x has an encoder and a decoder \({model_type}\)"):
        class_of(settings, "x")


def saved(kind: str, sizes: dict[str, Any], folder: Path, tokenizer_folder: Path) -> Any:
    """A random model in a folder, with a tokenizer of 300 tokens or so."""
    from transformers import AutoTokenizer

    model = random_model(kind, sizes)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)
    return model


def test_a_vision_language_model_predicts_from_its_text_side(tmp_path, tokenizer_folder):
    original = saved("LlavaForConditionalGeneration", LLAVA, tmp_path, tokenizer_folder)
    config = ModelConfig(name=str(tmp_path))
    assert config.is_causal()
    model = load_model(config)
    assert model.record.causal
    assert model.record.class_name == "LlavaForConditionalGeneration"
    without = record_without_weights(str(tmp_path))
    assert without.class_name == model.record.class_name
    assert model.max_positions == 128
    tokens = torch.tensor([[5, 9, 12]])
    assert torch.equal(model.module(tokens).logits, original(tokens).logits)
    names = [name for name, _ in load_skeleton(config).named_modules()]
    assert names == [name for name, _ in model.module.named_modules()]


@pytest.mark.parametrize("said_to_have_a_decoder", [True, False])
def test_an_encoder_that_was_saved_alone_is_read_whole(
    tmp_path, tokenizer_folder, said_to_have_a_decoder
):
    original = saved("T5EncoderModel", T5, tmp_path, tokenizer_folder)
    path = tmp_path / "config.json"
    about = json.loads(path.read_text()) | {"is_encoder_decoder": said_to_have_a_decoder}
    path.write_text(json.dumps(about))
    model = load_model(ModelConfig(name=str(tmp_path)))
    assert (model.record.causal, model.record.class_name) == (False, "T5EncoderModel")
    tokens = torch.tensor([[5, 9, 12]])
    expected = original(tokens).last_hidden_state
    assert torch.equal(model.module(tokens).last_hidden_state, expected)
    assert type(load_skeleton(ModelConfig(name=str(tmp_path)))) is type(model.module)


def test_a_head_whose_logits_later_tokens_move_predicts_no_next_token(
    tmp_path, tokenizer_folder, capsys
):
    saved("XLNetLMHeadModel", XLNET, tmp_path, tokenizer_folder)
    model = load_model(ModelConfig(name=str(tmp_path)))
    assert not model.record.causal
    assert model.record.class_name == "AutoModel"
    assert type(model.module).__name__ == "XLNetModel"
    assert "its logits depend on later tokens" in capsys.readouterr().err
