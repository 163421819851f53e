"""How many tokens a model reads at once, against running it on that many and on one more."""

from typing import Any

import pytest
import torch
from support.families import VISION_SIZES

from sae.base.errors import UserError
from sae.models.load import ModelConfig
from sae.models.positions import usable_positions
from sae.rows.reading import Reading, check_sites

SIZES = {
    "vocab_size": 97,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
DECODER = {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2}
DECODER |= {"vocab_size": 97, "decoder_ffn_dim": 24, "max_position_embeddings": 20}
OPT = {**SIZES, "ffn_dim": 24, "word_embed_proj_dim": 16}
GPT = {"vocab_size": 97, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 20}
# RoBERTa and its kin count positions from behind the id of their padding.
TABLES = [
    ("RobertaModel", SIZES, 18),
    ("XLMRobertaModel", {**SIZES, "pad_token_id": 4}, 15),
    ("MPNetModel", SIZES, 18),
    ("BertModel", SIZES, 20),
    ("OPTForCausalLM", OPT, 20),
    ("BartForCausalLM", DECODER, 20),
    ("GPT2LMHeadModel", GPT, 20),
    ("GPTJForCausalLM", {**GPT, "rotary_dim": 8}, 20),
]
ROTARY = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
STATED = [
    ("LlamaForCausalLM", ROTARY, 20),
    ("MptForCausalLM", {"d_model": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 20}, 20),
    (
        "Gemma3ForConditionalGeneration",
        {"text_config": ROTARY, "vision_config": VISION_SIZES},
        20,
    ),
    ("BloomForCausalLM", {"hidden_size": 16, "n_layer": 1, "n_head": 2, "seq_length": 9}, None),
    ("MambaForCausalLM", {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 97}, None),
    ("RwkvForCausalLM", {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 97}, None),
    ("T5EncoderModel", {"d_model": 16, "num_layers": 1, "d_kv": 8, "n_positions": 9}, None),
    ("XLNetModel", {"d_model": 16, "n_layer": 1, "n_head": 2, "vocab_size": 97}, None),
]


def made(kind: str, sizes: dict[str, Any], device: str = "cpu") -> Any:
    import transformers

    found = getattr(transformers, kind)
    with torch.device(device):
        return found(found.config_class(**sizes)).eval()


@pytest.mark.parametrize(("kind", "sizes", "expected"), TABLES)
def test_a_model_runs_on_as_many_tokens_as_it_says_and_on_not_one_more(kind, sizes, expected):
    model = made(kind, sizes)
    assert usable_positions(model) == expected
    model(torch.full((1, expected), 7))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, expected + 1), 7))


@pytest.mark.parametrize(("kind", "sizes", "expected"), [*TABLES, *STATED])
def test_it_is_known_before_there_are_weights(kind, sizes, expected):
    assert usable_positions(made(kind, sizes, "meta")) == expected


def test_sequences_that_a_model_cannot_read_are_refused_before_its_weights_are_looked_for(
    tmp_path,
):
    from transformers import RobertaConfig

    RobertaConfig(**SIZES, architectures=["RobertaModel"]).save_pretrained(tmp_path)
    hooks = ["encoder.layer.0"]
    asked = {"model": ModelConfig(name=str(tmp_path)), "hook_names": hooks}
    check_sites(Reading(**asked, context_size=18))
    with pytest.raises(UserError, match="context_size=19 is longer than the model's 18 pos"):
        check_sites(Reading(**asked, context_size=19))
