"""Edits as data: what a file may say, what is refused, and one digest however it is said."""

import json
import math
from pathlib import Path

import pytest
import torch

from sae.base.errors import UserError
from sae.edits import Edits, edit, edits_of
from sae.edits.modes import MODES
from sae.edits.record import TARGETS

SET = {"dictionary": "runs/x/dictionaries/one", "feature": 412, "do": "set", "by": 1.5}
ADD = {"at": "blocks.9.hook_resid_post", "token": " Paris", "do": "add", "by": 2.0}
FULL = {
    **SET,
    "at": "blocks.9.hook_resid_post",
    "unit": "max_act",
    "where": {"prompt": [[0, 4], [-2, None]], "generated": "none", "except": ["bos", [7, 9]]}
    | {"sequences": ["all", "none", [0, 9], [[0, 2], [-3, None]]]},
    "when": {"feature": 17, "above": 0.2},
}


def said(**keys: object) -> list[str]:
    """The sentences that refuse an edit."""
    with pytest.raises(UserError) as raised:
        edit(**keys)
    return str(raised.value).split("\n")


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
@pytest.mark.parametrize("records", [[SET], [ADD, FULL], []])
def test_a_file_gives_back_the_edits_and_their_digest(tmp_path, suffix, records):
    edits = Edits.from_plain({"edits": records, "model": "smollm2"})
    edits.save(tmp_path / f"edits{suffix}")
    found = Edits.read(tmp_path / f"edits{suffix}")
    assert found == edits
    assert found.digest == edits.digest


@pytest.mark.parametrize(
    "text", ["1234567e89012345", "0" * 16, "1e3", "true", "0x1f", "~", "2026-11-30", ".inf"]
)
@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_text_that_looks_like_something_else_stays_text(tmp_path, suffix, text):
    edits = Edits.from_plain([SET | {"digest": text}, ADD | {"token": text}])
    edits.save(tmp_path / f"edits{suffix}")
    assert Edits.read(tmp_path / f"edits{suffix}") == edits


def test_the_digest_does_not_depend_on_how_the_same_is_said(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "edits:\n- do: set\n  feature: 412\n  dictionary: runs/x/dictionaries/one\n"
        "  by: 15.0e-1\n  where: {except: [bos], prompt: all}\n"
    )
    (tmp_path / "b.json").write_text(json.dumps({"format": 1, "edits": [SET]}))
    digests = {
        Edits.read(tmp_path / "a.yaml").digest,
        Edits.read(tmp_path / "b.json").digest,
        edits_of(edit(**SET)).digest,
        edits_of([SET]).digest,
    }
    assert len(digests) == 1
    others = [SET | {"by": 1.6}, SET | {"feature": 413}, SET | {"do": "cap"}, FULL]
    assert len(digests | {edits_of(one).digest for one in others}) == 5


def test_whole_numbers_and_yaml_powers_of_ten_are_numbers(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "edits: [{do: set, feature: 412, dictionary: one, by: 1e3}]\n"
    )
    (record,) = Edits.read(tmp_path / "a.yaml").records
    assert record.by == 1000.0
    assert edits_of(SET | {"by": 2}).digest == edits_of(SET | {"by": 2.0}).digest


def test_everything_that_is_wrong_is_said_at_once(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "edits:\n- {do: sett, feature: -1, dictionary: one, by: .nan, colour: red}\n"
        "- {do: add}\nmodell: x\n"
    )
    with pytest.raises(UserError) as raised:
        Edits.read(tmp_path / "a.yaml")
    sentences = str(raised.value).split("\n")
    assert len(sentences) == 6
    for words in (
        "'modell' is no key of an edit file; nearest: model",
        "edits[0]: 'colour' is no key of an edit",
        "edits[0].feature=-1",
        "edits[0].by=nan; give a finite number",
        "edits[0].do='sett' is unknown; nearest: set",
        "edits[1] is of nothing; give exactly one of feature, features, direction, token, head",
    ):
        assert any(words in sentence for sentence in sentences), words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": [1]}, "is of feature and features; give exactly one"),
        ({"feature": None, "features": [3, 3]}, "names a feature twice"),
        ({"feature": None, "features": []}, "give a list such as"),
        ({"feature": True}, "give a whole number"),
        ({"dictionary": None}, "feature is of a dictionary; give dictionary"),
        ({"by": None}, "does not say how much"),
        ({"by": math.inf}, "give a finite number"),
        ({"by": "1e3"}, "give a number, in YAML 1000.0"),
        ({"by": []}, "empty list"),
        ({"by": torch.ones(2, 2)}, "give one number a sequence"),
        ({"unit": "kilo"}, "is unknown; there are raw, max_act, quantile:Q"),
        ({"unit": "quantile:1.5"}, "is unknown"),
        ({"do": "ablate"}, "by has no meaning with do=ablate"),
        ({"do": "multiply", "unit": "max_act"}, "unit=max_act has no meaning with do=multiply"),
        ({"do": "toward", "unit": "max_act"}, "changes the projection"),
        ({"do": "swap", "by": None}, "needs 2 features"),
        ({"where": {"prompt": "none", "generated": "none"}}, "chooses no token at all"),
        ({"where": {"except": [[0, None]]}}, "chooses no token at all"),
        ({"where": {"prompt": [4, 4]}}, "holds no token"),
        ({"where": {"prompt": [1, 2, 3]}}, "is no range"),
        ({"where": {"generated": [-2, None]}}, "before the first token that is written"),
        ({"where": {"sequences": ["none", "none"]}}, "chooses no token at all"),
        ({"where": {"sequences": []}}, "where.sequences=[]; give a list with all, none"),
        ({"where": {"sequences": ["all", 4]}}, "where.sequences[1]: [4] is no range"),
        ({"where": {"sequences": ["all", [4, 4]]}}, "where.sequences[1]: [4, 4] holds no"),
        ({"where": {"prompts": "all"}}, "'prompts' is no key of it; nearest: prompt"),
        ({"when": {"feature": 3}}, "neither above nor below"),
        ({"when": {"feature": 3, "above": math.nan}}, "is no limit"),
        ({"when": {"above": 1.0}}, "when.feature=None"),
    ],
)
def test_an_edit_that_means_nothing_is_refused(changes, words):
    found = said(**(SET | changes))
    assert len(found) == 1
    assert words in found[0]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({**ADD, "at": None}, "does not say where"),
        ({**ADD, "do": "set"}, "cannot be done to a token; of add, cap, orthogonal"),
        ({**ADD, "unit": "max_act"}, "is one of features"),
        ({**ADD, "dictionary": "one"}, "has no meaning with token"),
        ({**ADD, "digest": "0" * 16, "direction": "v.npy", "token": None}, ""),
        ({**ADD, "digest": "0" * 16}, "digest is of a dictionary or a direction's file"),
        ({**ADD, "when": {"feature": 1, "above": 0.0}}, "give when.dictionary"),
        ({"at": "x", "direction": torch.ones(2, 2), "do": "add", "by": 1}, "give one vector"),
    ],
)
def test_a_direction_has_keys_of_its_own(keys, words):
    if words:
        assert words in said(**keys)[0]
    else:
        edit(**keys)


def test_what_is_no_edit_file_is_refused_in_a_sentence(tmp_path):
    cases = {
        "twice.yaml": ("edits: []\nedits: []\n", "edits is given twice"),
        "twice.json": ('{"edits": [], "edits": []}', "edits is given twice"),
        "broken.json": ("{", "cannot be read as YAML or JSON"),
        "code.yaml": ("edits: !!python/object/apply:os.system [true]", "cannot be read"),
        "key.yaml": ("? [a, b]\n: 1\n", "cannot be read as YAML or JSON"),
        "list.yaml": ("- 1\n", "edits[0] is 1; give an object"),
        "other.yaml": ("a: 1\n", "contains no list of edits"),
        "newer.yaml": ("format: 2\nedits: []\n", "is of format 2, and this version"),
        "large.yaml": ("#" * (1 << 20) + "\n", "an edit file has no more than"),
    }
    for name, (text, words) in cases.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=r".") as raised:
            Edits.read(tmp_path / name)
        assert words in str(raised.value), name
    with pytest.raises(UserError, match="is not an edit file"):
        Edits.read(tmp_path / "missing.yaml")


def test_a_tensor_serves_python_and_no_file(tmp_path):
    record = edit(**ADD | {"token": None, "direction": torch.ones(4)})
    with pytest.raises(UserError, match=r"numpy\.save"):
        edits_of(record).save(tmp_path / "edits.yaml")
    assert not (tmp_path / "edits.yaml").exists()


def test_the_documentation_lists_every_mode_and_key():
    page = (Path(__file__).parents[2] / "docs/edits.md").read_text(encoding="utf-8")
    by = {"size": "a size", "factor": "a factor", "nothing": "left out"}
    for name, mode in MODES.items():
        targets = ", ".join(mode.targets)
        assert f"| `{name}` | {mode.formula} | {by[mode.by]} | {targets} |" in page
    for key in ("at", "cache", "digest", *TARGETS):
        assert f"`{key}" in page


def test_edits_are_made_of_a_tuple_of_edits():
    for wrong in (edit(**SET), [edit(**SET)], (SET,)):
        # Tests check types before anything else, and users' programs do not.
        made = object.__new__(Edits)
        object.__setattr__(made, "records", wrong)
        with pytest.raises(UserError, match=r"is not a tuple of edits; give sae\.Edits"):
            made.__post_init__()
