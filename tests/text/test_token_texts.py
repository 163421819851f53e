"""The text of tokens inside a text, and of one alone, for every kind of tokenizer."""

from typing import Any

import numpy as np
import pytest
from support.tokenizers import TEXTS, TOKENIZERS

from sae.text.token_texts import TokenTexts

ALL = [(kind, name) for kind in TOKENIZERS for name in TEXTS]
EXACT = ("Llama", "byte-level")


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def decoded(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_the_texts_of_a_sequence_are_together_what_it_is_decoded_to(
    kind: str, name: str
) -> None:
    tokenizer = TOKENIZERS[kind]()
    special = tokenizer.all_special_ids[:1]
    ids = [*special, *ids_of(tokenizer, TEXTS[name]), *special, *ids_of(tokenizer, TEXTS[name])]
    for sequence in (ids, ids[len(special) :]):
        assert "".join(TokenTexts(tokenizer).in_context(sequence)) == decoded(
            tokenizer, sequence
        )
    if kind in EXACT:
        assert (
            "".join(TokenTexts(tokenizer).in_context(ids_of(tokenizer, TEXTS[name])))
            == (TEXTS[name])
        )


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_text_is_what_its_token_adds_to_the_decoded_prefix(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    for name in ("English", "Chinese", "emoji"):
        ids = ids_of(tokenizer, TEXTS[name])
        texts = TokenTexts(tokenizer).in_context(ids)
        for n in range(len(ids) + 1):
            joined = "".join(texts[:n])
            prefix = decoded(tokenizer, ids[:n]) if n else ""
            # A prefix may end in a part of a character, which is not shown yet.
            whole = prefix.rstrip("\ufffd")
            assert joined.startswith(whole)
            assert joined == prefix or whole != prefix


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_texts_of_a_window_are_those_of_its_tokens_in_the_whole_sequence(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    ids = [i for text in TEXTS.values() for i in ids_of(tokenizer, text)]
    size = len(ids) // 2
    tokens = np.array(ids[: 2 * size], np.int32)
    draw = np.random.default_rng(0)
    starts = draw.integers(0, 2 * size, 300)
    ends = np.minimum(starts + draw.integers(0, 30, 300), starts // size * size + size)
    texts = TokenTexts(tokenizer)
    found = [texts.strings[n] for n in texts.windows(tokens, starts, ends, size).tolist()]
    whole = [text for half in tokens.reshape(2, size) for text in texts.in_context(half)]
    assert found == [text for a, b in zip(starts, ends, strict=True) for text in whole[a:b]]


def test_a_window_from_the_middle_keeps_the_space_of_its_first_word() -> None:
    for kind in ("Llama", "WordPiece", "byte-level", "Unigram", "word ends"):
        tokenizer = TOKENIZERS[kind]()
        ids = np.array(ids_of(tokenizer, "the old cat the old cat"))
        texts = TokenTexts(tokenizer)
        half = len(ids) // 2
        second = texts.windows(ids, np.array([half]), np.array([len(ids)]), len(ids))
        assert "".join(texts.strings[n] for n in second) == " the old cat"


def test_a_split_character_is_the_text_of_the_last_of_its_tokens() -> None:
    tokenizer = TOKENIZERS["bytes"]()
    assert TokenTexts(tokenizer).in_context(ids_of(tokenizer, "a你👍")) == (
        ["a", "", "", "你", "", "", "", "👍"]
    )
    tokenizer = TOKENIZERS["Llama"]()
    ids = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "\n你".encode()]
    assert TokenTexts(tokenizer).in_context(ids) == ["\n", "", "", "你"]
    # The window begins inside the character, and ends inside the next.
    texts = TokenTexts(tokenizer)
    twice = np.array(ids * 2)
    cut = texts.windows(twice, np.array([2]), np.array([6]), len(twice))
    assert [texts.strings[n] for n in cut] == ["", "你", "\n", ""]


def test_a_broken_character_costs_no_other() -> None:
    tokenizer = TOKENIZERS["Llama"]()
    parts = [f"<0x{byte:02X}>" for byte in "你".encode()]
    one, two, three = tokenizer.convert_tokens_to_ids(parts)
    # This decoder gives up all bytes in a row for one that is wrong.
    assert decoded(tokenizer, [three, one, two, three, one]) == "\ufffd" * 5
    found = TokenTexts(tokenizer).in_context([three, one, two, three, one])
    assert found == ["\ufffd", "", "", "你", "\ufffd"]
    tokenizer = TOKENIZERS["byte-level"]()
    ids = ids_of(tokenizer, "龘靐")[1:]
    assert "".join(TokenTexts(tokenizer).in_context(ids)) == decoded(tokenizer, ids)


def test_a_single_token_is_shown_as_the_vocabulary_has_it_with_its_space() -> None:
    def single(kind: str, *names: str) -> list[str]:
        tokenizer = TOKENIZERS[kind]()
        return TokenTexts(tokenizer).single(tokenizer.convert_tokens_to_ids([*names]))

    assert single("Llama", "▁the", "a", "▁", "<s>", "<0xE4>", "<0x0A>") == (
        [" the", "a", " ", "<s>", "<0xE4>", "\n"]
    )
    assert single("WordPiece", "the", "##e", "[CLS]") == ["the", "##e", "[CLS]"]
    assert single("Unigram", "▁", "</s>") == [" ", "</s>"]
    tokenizer = TOKENIZERS["byte-level"]()
    names = ["Ġo", "he", "ä", "Ċ", "<|endoftext|>"]
    assert single("byte-level", *names) == [" o", "he", "<0xE4>", "\n", "<|endoftext|>"]
    assert TokenTexts(tokenizer).single([len(tokenizer) + 5]) == [f"[{len(tokenizer) + 5}]"]
    assert single("bytes", "a", "ä") == ["a", "<0xE4>"]


def test_a_continuation_keeps_the_space_that_it_begins_with() -> None:
    for kind in ("Llama", "WordPiece", "byte-level", "Unigram"):
        tokenizer = TOKENIZERS[kind]()
        ids = ids_of(tokenizer, "the old cat the old cat")
        before, after = ids[: len(ids) // 2], ids[len(ids) // 2 :]
        assert TokenTexts(tokenizer).continuation(before, after) == " the old cat"


def test_a_decoder_that_looks_far_is_followed_too() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"a": 0, ".": 1, "b": 2}, unk_token="a"))
    backend.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("...", "…")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    texts = TokenTexts(tokenizer)
    assert texts.in_context([0, 1, 1, 1, 2]) == ["a", "", "", "…", "b"]
    # It is noticed in one of many windows, and then all are looked at.
    tokens = np.array([0, 1, 2, 0, 2] * 600 + [0, 1, 1, 1, 2])
    starts = np.arange(0, len(tokens), 5)
    found = [texts.strings[n] for n in texts.windows(tokens, starts, starts + 5, 5)]
    assert found[-5:] == ["a", "", "", "…", "b"]
    assert found[:5] == ["a", ".", "b", "a", "b"]


def test_nothing_has_no_text() -> None:
    texts = TokenTexts(TOKENIZERS["Llama"]())
    assert texts.in_context([]) == []
    assert texts.single([]) == []
    assert texts.continuation([], []) == ""
