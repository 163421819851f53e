"""The dictionary of a run with several that is taken where none is named."""

import json
import shutil
from dataclasses import replace

import pytest

import sae
from sae.dictionary import save_dictionary
from sae.run import Run


@pytest.fixture(name="run")
def run_fixture(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    return run


def compared(run, recommended, **digests):
    there = {"strong": None, "weak": None} | digests
    listed = [{"id": name, "dictionary_digest": one} for name, one in there.items()]
    found = {"recommended": recommended, "dictionaries": listed}
    (run / "pareto.json").write_text(json.dumps(found))


def test_what_a_comparison_of_all_recommends_is_taken_and_said(run, capsys):
    digest = sae.load(str(run / "dictionaries" / "weak")).digest
    compared(run, "weak", weak=digest)
    assert Run.at(run).load(None)[0] == "weak"
    said = capsys.readouterr().err
    assert "weak is taken, which sae eval recommends among 2 dictionaries" in said
    assert "dictionary=NAME chooses another" in said
    assert Run.at(run).load("strong")[0] == "strong"


def test_a_control_that_nobody_compared_changes_nothing(run):
    dictionaries = run / "dictionaries"
    shutil.copytree(dictionaries / "weak", dictionaries / "weak-frozen-decoder")
    compared(run, "weak")
    assert Run.at(run).load(None)[0] == "weak"


def test_a_control_by_any_name_is_never_taken(run, capsys):
    strong = sae.load(str(run / "dictionaries" / "strong"))
    training = replace(strong.record.training, sae={"frozen": "decoder"})
    control = replace(strong, record=replace(strong.record, training=training))
    save_dictionary(control, run / "dictionaries" / "mine")
    compared(run, "mine", mine=control.digest)
    with pytest.raises(sae.UserError, match="mine, recommended before, is a control"):
        Run.at(run).load(None)
    shutil.rmtree(run / "dictionaries" / "weak")
    assert Run.at(run).load(None)[0] == "strong"
    assert "strong is taken, because all other dictionaries" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recommended", "digests", "sentence"),
    [
        (
            None,
            {},
            r"holds 2 dictionaries; choose one with dictionary=strong \(or weak\), or let",
        ),
        ("gone", {}, "gone, recommended before, is gone"),
        ("weak", {"weak": "0" * 16}, "weak has changed since it was compared"),
    ],
)
def test_a_comparison_of_something_else_decides_nothing(run, recommended, digests, sentence):
    if recommended:
        compared(run, recommended, **digests)
    with pytest.raises(sae.UserError, match=sentence) as refused:
        Run.at(run).load(None)
    assert f"sae eval run={run}" in str(refused.value)


def test_a_dictionary_that_came_later_has_to_be_compared_first(run):
    compared(run, "weak")
    shutil.copytree(run / "dictionaries" / "weak", run / "dictionaries" / "new")
    with pytest.raises(sae.UserError, match="the last comparison did not know new"):
        Run.at(run).load(None)
