"""Labelled texts: where they come from, how they are drawn, and what is none of them."""

import csv
import json

import pytest

from sae.base import UserError
from sae.text.labelled import labelled_texts, other_distribution, sae_probes_names, task_names

ROWS = [(f"text number {i} {'good' if i % 2 else 'bad'}", str(i % 2)) for i in range(40)]


def written(folder, rows, names=("text", "label"), kind="csv"):
    place = folder / f"task.{kind}"
    if kind == "csv":
        with place.open("w", newline="") as file:
            csv.writer(file).writerows([names, *rows])
    elif kind == "jsonl":
        lines = (json.dumps(dict(zip(names, row, strict=True))) for row in rows)
        place.write_text("\n".join(lines))
    else:
        import pyarrow
        import pyarrow.parquet

        columns = dict(zip(names, zip(*rows, strict=True), strict=True))
        pyarrow.parquet.write_table(pyarrow.table(columns), place)
    return str(place)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_table_of_any_kind_is_the_same_task(tmp_path, kind):
    found = labelled_texts(written(tmp_path, ROWS, kind=kind), "text", "label")
    assert found.texts == tuple(text for text, _ in ROWS)
    assert found.labels.tolist() == [label == "1" for _, label in ROWS]
    assert (found.classes, found.words) == (("0", "1"), None)


def test_columns_may_have_other_names(tmp_path):
    place = written(tmp_path, ROWS, ("body", "kind"))
    assert len(labelled_texts(place, "body", "kind")) == 40
    with pytest.raises(UserError, match=r"text_column=text is not in .*body, kind"):
        labelled_texts(place, "text", "kind")
    with pytest.raises(UserError, match="label_column=label is not in"):
        labelled_texts(place, "body", "label")


def test_texts_to_train_and_to_test_on_are_others_and_as_many_of_either_label(tmp_path):
    found = labelled_texts(written(tmp_path, ROWS), "text", "label")
    train, test = found.drawn(20, 10, seed=1)
    assert (len(train), len(test)) == (20, 10)
    assert (train.labels.sum(), test.labels.sum()) == (10, 5)
    assert not {*train.texts} & {*test.texts}
    assert train.texts == found.drawn(20, 10, seed=1)[0].texts
    assert train.texts != found.drawn(20, 10, seed=2)[0].texts


def test_of_a_rare_label_both_sides_get_their_share(tmp_path):
    rows = [(f"text {i}", "rare" if i < 9 else "common") for i in range(100)]
    found = labelled_texts(written(tmp_path, rows), "text", "label")
    train, test = found.drawn(200, 100, seed=0)
    assert (len(train), len(test)) == (12, 6)
    assert train.labels.sum() == 6


def test_a_text_that_comes_twice_is_taken_once(tmp_path):
    found = labelled_texts(written(tmp_path, [*ROWS, *ROWS]), "text", "label")
    assert len(found) == 40


def test_the_built_in_task_asks_about_words_and_holds_some_out():
    found = labelled_texts("noun-or-verb", "x", "y")
    assert found.classes == ("noun", "verb")
    train, test = found.drawn(78, 42, seed=0)
    assert (len(train), len(test)) == (78, 42)
    assert not {*train.words} & {*test.words}
    assert all(word in text for word, text in zip(found.words, found.texts, strict=True))


@pytest.mark.parametrize(
    ("rows", "names", "sentence"),
    [
        ([("a", "1"), ("b", "1")], None, "all 2 texts are labelled '1'"),
        ([(f"t{i}", f"{i / 7}") for i in range(9)], None, "9 different labels, such as 0.0"),
        ([("a", "1"), ("", "0")], None, "line 3: text='' is not a text"),
        ([("a", "1"), ("b", "")], None, "line 3: label='' is not a label"),
        ([("ab", "1", 0, 3)], ("text", "label", "start", "end"), "start=0, end=3 is no part"),
        ([("ab", "1", "x", 1)], ("text", "label", "start", "end"), "start=x, end=1 is no part"),
        (
            [("ab", "1", 0, 1), ("b", "0", "", "")],
            ("text", "label", "start", "end"),
            "1 of 2 texts have no start and end",
        ),
        (
            [("a", "1", "train"), ("b", "0", "dev")],
            ("text", "label", "split"),
            "split='dev' is neither train nor test",
        ),
        (
            [("a", "1", "train"), ("b", "0", "")],
            ("text", "label", "split"),
            "1 of 2 texts have no split",
        ),
    ],
)
def test_what_is_no_task_is_refused_in_a_sentence(tmp_path, rows, names, sentence):
    place = written(tmp_path, rows, names or ("text", "label"))
    with pytest.raises(UserError, match=sentence):
        labelled_texts(place, "text", "label")


def test_too_few_texts_of_a_label_are_refused_in_a_sentence(tmp_path):
    rows = [("one", "1"), ("two", "1"), *((f"t{i}", "0") for i in range(30))]
    found = labelled_texts(written(tmp_path, rows), "text", "label")
    with pytest.raises(UserError, match="1 text labelled '1' to train on"):
        found.drawn(10, 10, seed=0)


def test_names_that_are_no_task_are_refused_in_a_sentence(tmp_path):
    for name, sentence in (
        (str(tmp_path / "nowhere.csv"), "is not a file"),
        ("nowhere.jsonl", "is not a file"),
        (
            "sae-probes:hist_fig_ismale",
            "not one of the 155 data sets of sae-probes; nearest: 5_",
        ),
    ):
        with pytest.raises(UserError, match=sentence):
            labelled_texts(name, "text", "label")
    (tmp_path / "task.txt").write_text("text")
    with pytest.raises(UserError, match="has an unknown ending"):
        labelled_texts(str(tmp_path / "task.txt"), "text", "label")
    with pytest.raises(UserError, match="is there twice"):
        task_names(["noun-or-verb", "noun-or-verb"])


def test_the_wheels_tasks_have_two_labels_and_some_have_other_texts():
    names = sae_probes_names()
    assert len(names) == 113
    assert task_names(["sae-probes:all"]) == [f"sae-probes:{name}" for name in names]
    found = labelled_texts("sae-probes:5_hist_fig_ismale", "x", "y")
    assert (len(found), found.classes) == (4282, ("0", "1"))
    other = other_distribution(found.name)
    assert (len(other), other.classes) == (299, ("0", "1"))
    assert other_distribution("sae-probes:95_toxic_is") is None
    with pytest.raises(UserError, match="4 different labels, such as Entertainment"):
        labelled_texts("sae-probes:97_news_class", "x", "y")
