"""Several dials of one dictionary: from a page to edits and back, and what is written."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.server import Server, serving
from support.small_atlas import DEAD, TEXT, copy_of, ready

import sae
from sae.pages.server.desk import Dial, others

THIRTEEN = yaml.safe_dump(
    {"edits": [{"dictionary": "strong", "feature": i, "do": "set", "by": 1} for i in range(13)]}
)
BODY = {"text": TEXT, "dials": [{"feature": 3, "strength": 2}], "max_new_tokens": 12}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_run) -> Path:
    return copy_of(tiny_run, tmp_path_factory.mktemp("desk") / "run", "strong")


@pytest.fixture(scope="module")
def server(run) -> Iterator[Server]:
    with serving(run) as found:
        ready(found)
        yield found


def write(server: Server, **changes) -> dict:
    return server.json("/atlas/strong/api/write", BODY | changes)


def test_dials_at_zero_write_the_plain_text_three_times(server):
    found = write(server, dials=[{"feature": j, "strength": 0} for j in (3, 5)])
    assert found["plain"] == found["edited"] == found["random"]
    assert found["prompt"] == TEXT
    assert len(found["others"]) == 2


def test_dials_are_turned_together_beside_other_features_turned_as_far(server, run):
    dials = [
        {"feature": 3, "strength": 8},
        {"feature": 5, "strength": 4, "do": "set"},
    ]
    found = write(server, dials=dials, temperature=0)
    m = sae.model(str(sae.load(str(run / "dictionaries/strong")).record.model.name))
    folder = str(run / "dictionaries/strong")

    def text(*given: dict) -> str:
        edits = [
            sae.edit(
                dictionary=folder,
                feature=d["feature"],
                do=d.get("do", "add"),
                by=float(d["strength"]),
                unit="max_act",
            )
            for d in given
        ]
        with m.edited(edits):
            return m.generate(TEXT, max_new_tokens=12, to_the_end=True)

    assert found["plain"] == text()
    assert found["edited"] == text(*dials) != found["plain"]
    assert found["random"] == text(*found["others"])
    assert [d["strength"] for d in found["others"]] == [8, 4]
    assert not {d["feature"] for d in found["others"]} & {3, 5, DEAD}
    assert write(server, dials=dials, temperature=0, seed=1)["others"] != found["others"]


def test_others_are_live_and_drawn_by_a_seed():
    dials, highest = (Dial(0, 2.0), Dial(2, 1.0, "set")), [1.0, 0.0, 1.0, 1.0, 1.0]
    found = others(dials, highest, 0)
    assert {dial.feature for dial in found} == {3, 4}
    assert [(dial.strength, dial.do) for dial in found] == [(2.0, "add"), (1.0, "set")]
    assert others(dials, highest, 0) == found
    # Where few are left there are fewer.
    assert len(others(dials, highest[:4], 0)) == 1


def test_dials_are_saved_as_an_edit_file_and_opened_again(server, run, tmp_path):
    dials = [
        {"feature": 3, "strength": 1.5, "do": "add"},
        {"feature": 5, "strength": 2.0, "do": "set"},
    ]
    text = server.json("/atlas/strong/api/save", {"dials": dials})["file"]
    (tmp_path / "edits.yaml").write_text(text)
    edits = sae.Edits.read(tmp_path / "edits.yaml")
    assert [(r.feature, r.do, r.by, r.unit) for r in edits.records] == [
        (3, "add", 1.5, "max_act"),
        (5, "set", 2.0, "max_act"),
    ]
    assert edits.records[0].digest == sae.load(str(run / "dictionaries/strong")).digest
    assert server.json("/atlas/strong/api/open", {"text": text})["dials"] == dials
    raw = "edits: [{dictionary: strong, feature: 3, do: set, by: 6.0}]"
    (one,) = server.json("/atlas/strong/api/open", {"text": raw})["dials"]
    assert one == {"feature": 3, "strength": 2.0, "do": "set"}


def test_edit_files_of_the_run_are_presets(server, run):
    assert server.json("/atlas/strong/api/presets") == {"presets": []}
    place = run / "edits"
    place.mkdir()
    dial = {"feature": 3, "strength": 2.0, "do": "set"}
    (place / "b.yaml").write_text("edits: [{dictionary: strong, feature: 3, do: set, by: 6}]")
    (place / "a.json").write_text('{"edits": 3}')
    (place / "notes.txt").write_text("no edits")
    broken, fine = server.json("/atlas/strong/api/presets")["presets"]
    assert fine == {"name": "b.yaml", "dials": [dial]}
    assert broken["name"] == "a.json"
    assert "contains no list of edits" in broken["why"]
    shutil.rmtree(place)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read as YAML or JSON"),
        ("edits: 3", "contains no list of edits"),
        ("edits: [{dictionary: strong, feature: 3, do: ablate}]", "is no dial: do is ablate"),
        ("edits: [{at: x, token: a, do: add, by: 1}]", "is no dial"),
        (
            f"edits: [{{dictionary: strong, feature: {DEAD}, do: set, by: 1}}]",
            "is dead",
        ),
        ("edits: [{dictionary: strong, feature: 3, do: set, by: 1, unit: std}]", "is in std"),
        ("edits: [{dictionary: strong, feature: 3, do: set, by: [1, 2]}]", "takes one number"),
        (
            "edits: [{dictionary: strong, feature: 3, do: set, by: 1, digest: other}]",
            "is of the dictionary other",
        ),
        (
            "edits: [{dictionary: strong, feature: 3, do: set, by: 1, where: {prompt: none}}]",
            "is made at some tokens only",
        ),
        (
            "edits: [{dictionary: runs/x/dictionaries/other, feature: 3, do: set, by: 1}]",
            "is of the dictionary other, and this one is strong",
        ),
        ("edits: []", "the file has 0 edits; give 1 to 12"),
        (THIRTEEN, "the file has 13 edits; give 1 to 12"),
        (
            f"edits: [{{dictionary: strong, features: {[*range(13)]}, do: set, by: 1}}]",
            "sets 13 dials; 12 fit",
        ),
    ],
)
def test_a_file_that_sets_no_dials_is_refused(server, text, words):
    assert words in server.refused("/atlas/strong/api/open", {"text": text})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dials": []}, "no dial is turned; add a feature"),
        ({"dials": None}, "dials is missing"),
        ({"dials": "x"}, 'dials is "x"; give a list'),
        ({"dials": [{"feature": 3, "strength": 1}] * 13}, "give a list of 12 at most"),
        ({"dials": [3]}, "dials holds 3; give feature"),
        ({"dials": [{"feature": 3, "strength": 1, "colour": 1}]}, "give feature, strength"),
        ({"dials": [{"feature": 3.5, "strength": 1}]}, "the feature of a dial is 3.5"),
        ({"dials": [{"feature": 3, "strength": math.nan}]}, "the strength of a dial is NaN"),
        ({"dials": [{"feature": 3, "strength": 1e9}]}, "give a number from -100 to 100"),
        ({"dials": [{"feature": 3, "strength": 1, "do": "ablate"}]}, "give add or set"),
        ({"dials": [{"feature": DEAD, "strength": 1}]}, f"feature {DEAD} is dead"),
        ({"dials": [{"feature": 64, "strength": 1}]}, "feature 64 is out of range"),
        ({"chat": 1}, "chat is 1; give true or false"),
        ({"chat": True}, "has no chat template"),
        ({"text": ""}, "write a beginning"),
        ({"max_new_tokens": 120}, "120 are to be written, but the model reads only 128"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(server, changes, words):
    assert words in server.refused("/atlas/strong/api/write", BODY | changes)
