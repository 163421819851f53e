"""Pairs of prompts: read, drawn of templates, and refused with a sentence each."""

import json

import pytest

import sae
from sae.base import UserError
from sae.models.load import ModelConfig, load_model
from sae.patching.config import PatchConfig
from sae.patching.pairs import LeftOut, Pair, PairText, drawn, pair_texts, tokenised

ROW = {"clean": "she kept one", "corrupt": "she kept the", "answer": " mill", "wrong": " dog"}
TEMPLATE = PairText("{a} and {b} said {b}", "{a} and {b} said {a}", " {a}", " {b}")
SLOTS = {"a": ["cats", "snow", "year"], "b": ["cats", "snow", "year"]}


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(ModelConfig(name=str(tiny_model), device="cpu"))


def text(**changes):
    return PairText(**{**ROW, **changes})


def test_a_pair_is_read_as_the_model_reads_prompts(model):
    found = tokenised(model, text())
    assert isinstance(found, Pair)
    assert found.clean.tolist() == model.prompt_ids("she kept one").tolist()
    assert found.differing == (len(found.clean) - 1,)
    assert found.answer == model.text_ids(" mill")[0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"corrupt": "she kept"}, "the clean prompt has 5 tokens and the corrupt one 4, and"),
        ({"answer": "mill"}, "answer='mill' is 2 tokens; ' mill' is one"),
        ({"wrong": " xylophone"}, "wrong=' xylophone' is"),
        ({"wrong": " mill"}, "answer and wrong are the same token"),
        ({"corrupt": "she kept one"}, "clean and corrupt are the same prompt"),
        (
            {"clean": "the " * 140, "corrupt": "the " * 139 + "she "},
            "but the model reads only 128 at once",
        ),
    ],
)
def test_a_pair_that_cannot_be_patched_is_left_out_with_a_sentence(model, changes, sentence):
    found = tokenised(model, text(**changes))
    assert isinstance(found, LeftOut)
    assert sentence in found.why


def test_slots_get_different_words_and_pairs_are_different():
    found = drawn([TEMPLATE], SLOTS, 6, 0)
    assert len({*found}) == 6
    for one in found:
        first, second = one.answer.strip(), one.wrong.strip()
        assert first != second
        assert one.clean == f"{first} and {second} said {second}"
        assert one.corrupt == f"{first} and {second} said {first}"
    assert found == drawn([TEMPLATE], SLOTS, 6, 0) != drawn([TEMPLATE], SLOTS, 6, 1)
    # There are no more than six.
    assert len(drawn([TEMPLATE], SLOTS, 50, 0)) == 6


def test_templates_are_drawn_in_turn_and_known_apart():
    other = PairText("now {b} and {a}", "now {a} and {b}", " {a}", " {b}")
    found = drawn([TEMPLATE, other], SLOTS, 4, 0)
    assert [one.template for one in found] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("slots", "sentence"),
    [
        ({"a": ["cats"]}, "slot {b} of a prompt has no words"),
        ({**SLOTS, "c": ["x"]}, "slots has c, which occurs in no prompt and no answer"),
        ({"a": ["cats"], "b": ["cats"]}, "no two slots can be given different words"),
    ],
)
def test_slots_that_cannot_be_filled_are_refused(slots, sentence):
    with pytest.raises(UserError, match=sentence):
        drawn([TEMPLATE], slots, 3, 0)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_table_holds_a_pair_a_row(tmp_path, kind):
    import pandas

    rows = [ROW, {**ROW, "clean": 'she, "kept" one'}]
    path = tmp_path / f"pairs.{kind}"
    frame = pandas.DataFrame(rows)
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        frame.to_parquet(path)
    found = pair_texts(PatchConfig(table=str(path)))
    assert found == [PairText(**row) for row in rows]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", "clean,corrupt\na,b\n", "row 1 of .* has answer=None; give text"),
        ("a.jsonl", "{", "cannot be read as .jsonl"),
        ("a.jsonl", "", "holds no pair"),
        ("a.jsonl", '{"clean": 3}', "row 1 of .* has clean=3"),
        ("a.jsonl", '{"cleen": "x"}', "has 'cleen', and a pair has clean, corrupt"),
        ("a.txt", "x", "has an unknown ending"),
        ("a.parquet", "x", "cannot be read as .parquet"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(tmp_path, name, content, sentence):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=sentence):
        pair_texts(PatchConfig(table=str(tmp_path / name)))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"table": "x.csv", "pairs": [ROW]}, "pairs and table=x.csv are both given"),
        ({"clean": " "}, "clean is empty"),
        ({"sites": ["residuel"]}, "sites=residuel is unknown; nearest: residual"),
        ({"sites": ["mlp", "mlp"]}, "sites=mlp occurs twice"),
        ({"methods": []}, "patches or methods is empty"),
        ({"sites": []}, "there is nothing to patch"),
        ({"receivers": ["H3"]}, "receivers=H3 is not a receiver; give logits, a head such as"),
        ({"frozen": "some"}, "frozen=some is unknown"),
        ({"receivers": ["logits"], "methods": ["relp"]}, "receivers needs exact patching"),
        ({"n_exact": -1}, "n_exact=-1; give 0 or more"),
        ({"name": "a/b"}, "name=a/b; give a word"),
        ({"n_pairs": 0}, "n_pairs=0"),
    ],
)
def test_impossible_settings_are_refused_in_a_sentence(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        sae.PatchConfig(**settings)
