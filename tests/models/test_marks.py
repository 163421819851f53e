"""What stands around documents is what the tokenizer itself puts there, and never doubled."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import EsmConfig, EsmModel, EsmTokenizer, PreTrainedTokenizerFast

from sae.analysis.reading import read_text
from sae.base.errors import UserError
from sae.models.load import ModelConfig, load_model, recorded_model
from sae.models.marks import find_marks, marks_before, special_ids
from sae.text.packing import Marks
from sae.text.tokens import tokenized

TEXT = "the river ran past the old mill"
RESIDUES = "MKTAYIAKQRQISFVKSHFSRQ"


def words(*around: str, **roles: str) -> Any:
    """A tokenizer of words; `around` has what it puts before and after a text by itself."""
    special = ["<s>", "</s>", "<a>", "<b>", "<|im_end|>", "<unk>"]
    vocabulary = {token: i for i, token in enumerate([*special, *TEXT.split(), "<tool>"])}
    found = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if around:
        single = " ".join([around[0], "$A", around[1]]).split()
        pairs = [(token, vocabulary[token]) for token in single if token != "$A"]
        found.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=pairs
        )
    return PreTrainedTokenizerFast(tokenizer_object=found, unk_token="<unk>", **roles)


@pytest.mark.parametrize(
    ("around", "roles", "causal", "begin", "end"),
    [
        # Llama: the tokenizer begins texts itself.
        (("<s>", ""), {"bos_token": "<s>", "eos_token": "</s>"}, True, (0,), ()),
        # GPT-2 and Pythia: it does not, and has a token that everybody puts there.
        ((), {"bos_token": "<s>", "eos_token": "<s>"}, True, (0,), ()),
        # Qwen: there is none, and the end of a chat's turn is none either.
        ((), {"eos_token": "<|im_end|>", "pad_token": "</s>"}, True, (), ()),
        # A class token that it never puts anywhere is no beginning.
        ((), {"cls_token": "<a>", "sep_token": "<b>"}, True, (), ()),
        # ChatGLM: two of them.
        (("<a> <b>", ""), {"bos_token": "<s>", "eos_token": "</s>"}, True, (2, 3), ()),
        # An embedding model made of a causal one: a text ends with a token.
        (("", "</s>"), {"bos_token": "<s>", "eos_token": "</s>"}, True, (0,), (1,)),
        # BERT.
        (("<a>", "<b>"), {"cls_token": "<a>", "sep_token": "<b>"}, False, (2,), (3,)),
        # RoBERTa, by other names.
        (("<s>", "</s>"), {"bos_token": "<s>", "eos_token": "</s>"}, False, (0,), (1,)),
        # The encoder of T5, and XLNet, which has a beginning token and does not use it.
        (("", "</s>"), {"eos_token": "</s>"}, False, (), (1,)),
        (("", "<b> <a>"), {"bos_token": "<s>", "sep_token": "<b>"}, False, (), (3, 2)),
        # The body of a causal model, without its head.
        ((), {"bos_token": "<s>", "eos_token": "</s>"}, False, (0,), ()),
    ],
)
def test_marks_are_what_the_tokenizer_puts_around_a_text(around, roles, causal, begin, end):
    tokenizer = words(*around, **roles)
    found = find_marks(tokenizer, "model", None, causal=causal, usual=None)
    assert (found.begin, found.end) == (begin, end)
    none = find_marks(tokenizer, "model", "none", causal=causal, usual="<a>")
    assert (none.begin, none.end) == ((), end)
    usual = find_marks(tokenizer, "model", None, causal=causal, usual="<b>")
    assert usual.begin == (3,)
    assert find_marks(tokenizer, "model", "old", causal=causal, usual="<b>").begin == (11,)


def test_a_tokenizer_that_changes_the_text_beside_its_special_tokens_is_asked_about():
    class Strange:
        bos_token_id = cls_token_id = eos_token_id = pad_token_id = 3

        def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [1, 2, 3] if add_special_tokens else [4, 5]}

    with pytest.raises(
        UserError,
        match=r"is not known which of them begin a text; give model\.bos_token=\.\.\. or model",
    ):
        find_marks(Strange(), "model", None, causal=True, usual=None)
    assert find_marks(Strange(), "model", "none", causal=True, usual=None) == Marks((), (), 3)


def test_tokens_of_templates_are_no_text_and_tokens_of_tools_are():
    tokenizer = words("<s>", "", bos_token="<s>", eos_token="</s>")
    assert special_ids(tokenizer) == {0, 1, 5}
    tokenizer.add_tokens(["<a>"], special_tokens=True)
    tokenizer.add_tokens(["<tool>"])
    assert special_ids(tokenizer) == {0, 1, 2, 5}


def test_before_marks_were_kept_they_were_guessed_from_names():
    """Texts of such records were marked so, and are read so again."""
    chat = words(eos_token="<|im_end|>")
    assert marks_before(chat, None, causal=True) == Marks((4,), (), 4)
    bert = words(cls_token="<a>", sep_token="<b>", pad_token="</s>")
    assert marks_before(bert, None, causal=False) == Marks((2,), (3,), 1)
    assert marks_before(bert, 0, causal=True) == Marks((0,), (), 1)


@pytest.fixture(scope="module")
def esm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ESM with the vocabulary of the real one."""
    folder = tmp_path_factory.mktemp("esm")
    vocabulary = "<cls> <pad> <eos> <unk> L A G V S E R T I D P K Q N F Y M H W C".split()
    vocabulary += "X B U Z O . - <null_1> <mask>".split()
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    EsmTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = EsmConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=100,
        position_embedding_type="rotary",
        pad_token_id=1,
        mask_token_id=32,
        token_dropout=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        EsmModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def test_a_protein_is_read_as_its_model_reads_it_with_its_end(esm):
    model = load_model(ModelConfig(name=str(esm)))
    expected = EsmTokenizer.from_pretrained(esm)(RESIDUES)["input_ids"]
    assert (expected[0], expected[-1]) == (0, 2)
    assert model.document_ids(RESIDUES).tolist() == expected
    assert recorded_model(model.record, "cpu").document_ids(RESIDUES).tolist() == expected


@pytest.fixture
def chat_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with a chat template that begins with the beginning token."""
    folder = shutil.copytree(tiny_model, tmp_path / "chat")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    return folder


def test_a_beginning_that_a_template_brings_is_doubled_nowhere(chat_model):
    model = load_model(ModelConfig(name=str(chat_model)))
    chat = [{"role": "user", "content": "the river ran"}]
    text = model.tokenizer.apply_chat_template(chat, tokenize=False)
    expected = model.tokenizer.apply_chat_template(chat, tokenize=True)["input_ids"]
    assert expected[0] == model.bos_token_id != expected[1]
    assert model.prompt_ids(text).tolist() == model.document_ids(text).tolist() == expected
    ((_, ids),) = tokenized([chat], model.tokenizer, 0)
    np.testing.assert_array_equal(ids, expected)
    # The same text without its beginning is the same prompt.
    assert model.prompt_ids(text.removeprefix("<s>")).tolist() == expected


def test_a_prompt_that_is_to_go_on_has_no_end_after_it(esm):
    model = load_model(ModelConfig(name=str(esm)))
    assert model.prompt_ids("MKT").tolist() == model.document_ids("MKT").tolist()[:-1]


@pytest.mark.parametrize("text", [RESIDUES, f"<cls>{RESIDUES}", f"{RESIDUES}<eos>"])
def test_a_text_of_ones_own_is_read_with_its_marks_and_shown_without(esm, text):
    from support.world import random_dictionary

    model = load_model(ModelConfig(name=str(esm)))
    dictionary = random_dictionary(hook_name="encoder.layer.0")
    found = read_text(model, dictionary, text, feature=3)
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(found.tokens) == len(ids)
    with torch.no_grad():
        whole = model.tokenizer(RESIDUES, return_tensors="pt")
        seen = model.module(**whole, output_hidden_states=True).hidden_states[1][0]
    own = seen[1:-1] if text == RESIDUES else seen[:-1] if text[0] == "<" else seen[1:]
    expected = dictionary.encode(own)[:, 3]
    special = torch.tensor([i in (0, 2) for i in ids])
    expected[special] = 0
    torch.testing.assert_close(torch.tensor(found.acts), expected, rtol=1e-4, atol=1e-5)
