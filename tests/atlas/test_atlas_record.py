"""`atlas.json`: what an atlas was made from, and what is refused."""

import json

import pytest
from support.atlas_samples import sample_record

from sae.atlas import AtlasRecord, read_record, write_record
from sae.base.errors import UserError


def test_what_is_written_is_read_again(tmp_path):
    record = sample_record(70, 3, folded=True, data="a “text”")
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record


def test_keys_that_are_not_there_are_not_known_and_others_are_left_out():
    given = {
        "format": 2,
        "digest": "d",
        "dictionary": "x",
        "model_name": "m",
        "hook_name": "h",
        "d_sae": 4,
        "n_bands": 5,
        "colour": "red",
    }
    record = AtlasRecord.from_json("atlas.json", given)
    assert (record.n_rows, record.seed, record.imported) == (None, None, False)
    assert record.dictionary_digest == "unknown"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"d_sae": "64"}, "d_sae='64', where sae-atlas writes a whole number; run sae analyze"),
        ({"d_sae": True}, "d_sae=True, where sae-atlas writes a whole number"),
        ({"d_sae": None}, "d_sae=None, where"),
        ({"hook_name_out": 3}, "hook_name_out=3, where sae-atlas writes text or null"),
        ({"imported": "yes"}, "imported='yes', where sae-atlas writes true or false"),
        ({"n_rows": 0.5}, "n_rows=0.5, where sae-atlas writes a whole number or null"),
        ({"format": 1}, "atlas format 1, this is format 2; run sae analyze"),
        ({"format": "new"}, "atlas format new, this is format 2"),
    ],
)
def test_a_record_of_another_form_is_refused_in_a_sentence(changes, said, tmp_path):
    (tmp_path / "atlas.json").write_text(json.dumps(sample_record(4, 0).to_json() | changes))
    with pytest.raises(UserError, match=said) as refused:
        read_record(tmp_path)
    assert "atlas.json" in str(refused.value)


@pytest.mark.parametrize("name", ["digest", "dictionary", "model_name", "hook_name", "n_bands"])
def test_a_record_without_what_every_atlas_has_is_refused(name, tmp_path):
    found = sample_record(4, 0).to_json()
    del found[name]
    (tmp_path / "atlas.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match=f"{name}=None, where sae-atlas writes"):
        read_record(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", "null", "{", ""])
def test_a_damaged_record_is_refused(text, tmp_path):
    (tmp_path / "atlas.json").write_text(text)
    with pytest.raises(UserError, match=r"atlas\.json"):
        read_record(tmp_path)


def test_a_folder_without_a_record_is_no_finished_atlas(tmp_path):
    with pytest.raises(UserError, match="is not a finished atlas"):
        read_record(tmp_path)
