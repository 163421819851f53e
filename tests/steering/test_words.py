"""Allowed words over token boundaries."""

import re

import pytest
import torch

from sae.base import UserError
from sae.models.load import ModelConfig, load_model
from sae.steering.words import CLOSED, ROOT, Words, read_words, token_texts

ALLOWED = ["the", "then", "café", "mill"]
TEXTS = [
    None,
    " the",
    "the",
    "n",
    " ",
    "t",
    "h",
    "e",
    "zz",
    "the.",
    ". T",
    "7",
    "<0xC3>",
    "x y",
]


def id_of(text):
    return TEXTS.index(text)


@pytest.fixture(scope="module")
def words():
    return Words(["the", "then"], TEXTS)


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(ModelConfig(name=str(tiny_model), device="cpu"))


@pytest.fixture(scope="module")
def spelled(model):
    return Words(ALLOWED, token_texts(model))


def after(words, *texts, state=ROOT):
    for text in texts:
        state, fine = words.step(state, id_of(text))
        assert fine
    return state


def allowed_after(words, *texts, state=ROOT):
    mask = words.allowed(after(words, *texts, state=state))
    return {TEXTS[i] for i in mask.nonzero()[:, 0].tolist()}


def test_a_word_may_be_begun_by_any_token_that_its_letters_begin_with(words):
    assert allowed_after(words) == {" the", "the", " ", "t", "the.", ". T", "7"}


def test_inside_a_word_only_its_own_letters_may_follow_until_it_is_whole(words):
    assert allowed_after(words, "t") == {"h"}
    assert allowed_after(words, ". T", "h") == {"e"}


def test_behind_a_whole_word_it_may_go_on_as_another_or_end(words):
    assert allowed_after(words, " the") == {"n", " the", " ", ". T", "7"}
    assert allowed_after(words, " the", "n") == {" the", " ", ". T", "7"}


def test_white_space_digits_and_punctuation_are_always_allowed_where_no_word_is_open(words):
    assert {" ", "7"} <= allowed_after(words, "7", " ", "the", "7")


def test_the_word_that_a_prompt_ends_with_may_only_end(words):
    assert words.begin("a zebra") == CLOSED
    assert words.begin("a zebra ") == ROOT
    assert allowed_after(words, state=CLOSED) == {" the", " ", ". T", "7"}


def test_a_token_that_no_word_goes_on_from_is_outside_and_so_is_what_lengthens_it(words):
    written = [id_of(text) for text in (" the", "zz", "t", " ", "t", " ", "the")]
    assert words.outside(ROOT, written) == [False, True, True, False, False, True, False]


def test_a_token_without_text_is_outside(words):
    assert words.step(ROOT, 0) == (ROOT, False)


def test_a_beginning_that_tokens_cannot_finish_is_not_allowed():
    # "than" would need an "a", which no token has.
    words = Words(["the", "than"], [" ", "t", "h", "e", "n"])
    assert words.n_spelled == 1
    th = words.step(words.step(ROOT, 1)[0], 2)[0]
    assert words.allowed(th).nonzero()[:, 0].tolist() == [3]
    assert words.step(ROOT, 1)[1]
    alone = Words(["e", "than"], [" ", "t", "h", "e", "n"])
    assert alone.allowed(ROOT).nonzero()[:, 0].tolist() == [0, 3]
    assert not alone.step(ROOT, 1)[1]


def test_what_steps_call_allowed_is_what_masks_hold_in_every_state(spelled, model):
    texts = token_texts(model)
    waiting, seen = [ROOT, CLOSED], {ROOT, CLOSED}
    while waiting:
        state = waiting.pop()
        steps = [spelled.step(state, token) for token in range(len(texts))]
        assert spelled.allowed(state).tolist() == [fine for _, fine in steps]
        assert spelled.allowed(state).any()
        new = {after for after, fine in steps if fine} - seen
        seen |= new
        waiting += new
    assert len(seen) > 10


def test_a_token_is_ever_allowed_if_it_is_in_some_state(spelled, model):
    reached, waiting = {ROOT, CLOSED}, [ROOT, CLOSED]
    found = torch.zeros(len(token_texts(model)), dtype=torch.bool)
    while waiting:
        mask = spelled.allowed(state := waiting.pop())
        found |= mask
        new = {spelled.step(state, i)[0] for i in mask.nonzero()[:, 0].tolist()} - reached
        reached |= new
        waiting += new
    assert torch.equal(spelled.ever_allowed(), found)


@pytest.mark.parametrize("word", ["the", "The", "then", "café", "Café", "mill"])
def test_a_word_is_allowed_however_it_is_cut_into_tokens(spelled, model, word):
    texts = token_texts(model)
    whole = model.text_ids(f" {word} ").tolist()
    assert not any(spelled.outside(ROOT, whole))
    single = [i for c in f" {word} ".encode() for i in [_byte_token(texts, c)]]
    assert not any(spelled.outside(ROOT, single))


def _byte_token(texts, byte):
    shown = chr(byte) if byte < 128 else f"<0x{byte:02X}>"
    return texts.index(shown)


@pytest.mark.parametrize("text", [" milled", " THE", " th ", " thethe", " cafe "])
def test_other_words_are_outside_however_they_begin(spelled, model, text):
    assert any(spelled.outside(ROOT, model.text_ids(text).tolist()))


def test_drawing_at_random_from_what_is_allowed_writes_allowed_words_alone(spelled, model):
    draw, pattern = torch.Generator().manual_seed(0), re.compile("[Tt]hen?|[Cc]afé|[Mm]ill")
    texts, state, ids = token_texts(model), ROOT, []
    for _ in range(400):
        choices = spelled.allowed(state).nonzero()[:, 0]
        # Half of them letters, so that words are long and cut in many ways.
        lettered = [i for i in choices.tolist() if texts[i].strip().isalpha()]
        from_ = lettered if lettered and len(ids) % 2 else choices.tolist()
        ids.append(from_[int(torch.randint(len(from_), (1,), generator=draw))])
        state = spelled.step(state, ids[-1])[0]
    text = model.tokenizer.decode(ids)
    *found, _ = re.findall(r"[^\W\d_]+", text)
    assert len(found) > 50
    assert [word for word in found if not pattern.fullmatch(word)] == []
    assert spelled.count(ROOT, text)[0] == 0


def test_words_are_counted_in_a_text_and_a_cut_one_by_its_beginning(words):
    assert words.count(ROOT, "the cat, then Th") == (1, 4)
    assert words.count(ROOT, "the thx") == (1, 2)
    assert words.count(ROOT, "th the.") == (1, 2)
    assert words.count(CLOSED, "s the") == (1, 2)
    assert words.count(ROOT, " 7, ") == (0, 0)


def test_words_of_a_file_are_runs_of_letters_each_once(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("The cat\tsat\ncat don't <0xE4>\n\n", encoding="utf-8")
    assert read_words(str(path)) == ["The", "cat", "sat", "don", "t", "xE"]


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read"), (b"", "contains no word"), (b" 7 \n", "contains no word")],
)
def test_a_file_without_words_is_refused(tmp_path, content, said):
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_words(str(path))


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="cannot be read"):
        read_words(str(path))


def test_words_that_no_tokens_spell_are_refused():
    with pytest.raises(UserError, match="can spell none of the 2 allowed words"):
        Words(["zebra", "yak"], TEXTS)


def test_a_tokenizer_that_cannot_part_words_is_refused():
    with pytest.raises(UserError, match="separates words"):
        Words(["the"], ["the", "t"])
