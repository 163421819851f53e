"""What stands where an export goes: replaced, reused or left alone, and said in a sentence."""

import csv
import json
import os
import shutil

import pyarrow.parquet
import pytest
import torch
from support.files import unseal

import sae
import sae.publishing.folder
from sae.atlas.labels import read_labels
from sae.base.errors import UserError
from sae.cli import main

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A run whose two dictionaries are evaluated and analyzed."""
    folder = tmp_path_factory.mktemp("folder") / "run"
    shutil.copytree(tiny_run, folder)
    for name in ("strong", "weak"):
        sae.eval(run=str(folder), dictionary=name, n_behaviour_tokens=64)
        sae.analyze(run=str(folder), dictionary=name)
    return folder


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    return sae.export(
        run=str(run), dictionary="strong", out=str(tmp_path_factory.mktemp("made") / "out")
    )


@pytest.fixture
def out(made, tmp_path):
    """An export of its own."""
    return shutil.copytree(made, tmp_path / "out")


def export(run, out, **words):
    return sae.export(**{"run": str(run), "dictionary": "strong", "out": str(out), **words})


def files(folder):
    there = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in there}


def refused(run, out, sentence, **words):
    """Refused, in a dry run too, and nothing of it was touched."""
    before = files(out)
    for dry_run in (True, False):
        with pytest.raises(UserError, match=sentence):
            export(run, out, dry_run=dry_run, **words)
    assert files(out) == before


@pytest.mark.slow
@pytest.mark.parametrize("content", ['{"digest": "a"}', '{"a": 1}', "[]", "3", "{", ""])
def test_a_folder_with_an_export_json_of_somebody_else_is_not_replaced(content, run, tmp_path):
    (tmp_path / "export.json").write_text(content)
    (tmp_path / "precious").write_text("words")
    refused(run, tmp_path, r"export\.json is damaged, or was not written by .* export, so")


@pytest.mark.parametrize(
    "change", [{"digest": "a"}, {"files": {}}, {"more": 1}, {"shrunk": 3}, {"seal": None}]
)
def test_a_changed_stamp_is_none(change, run, out):
    stamp = json.loads((out / "export.json").read_text())
    (out / "export.json").write_text(json.dumps(stamp | change))
    refused(run, out, r"export\.json is damaged, or was not written by")


def test_what_lies_beside_an_export_is_not_replaced_with_it(run, out, tmp_path):
    (out / "notes").mkdir()
    (out / "notes/thesis.txt").write_text("words")
    sentence = r"holds notes/thesis\.txt beside the export; move that away, or choose another"
    refused(run, out, sentence, license="mit")
    refused(run, out, sentence)
    shutil.rmtree(out / "notes")
    os.symlink(tmp_path / "nowhere", out / "link")
    refused(run, out, "holds link beside the export", license="mit")


def test_an_export_within_an_export_stays(run, out):
    inner = export(run, out / "inner")
    refused(run, out, r"holds inner/README\.md, .* beside the export", license="mit")
    assert sae.load(str(inner / HOOK)).d_sae == 64


def test_the_export_of_another_dictionary_is_not_replaced(run, out):
    sentence = r"is the export of another dictionary, strong \(.* and this one is weak \("
    refused(run, out, sentence, dictionary="weak")


def test_one_that_was_trained_again_replaces_its_own_export(run, out, tmp_path):
    again = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(again / "dictionaries/strong")
    shutil.copytree(run / "dictionaries/weak", again / "dictionaries/strong")
    shutil.rmtree(again / "atlas")
    (again / "evals/strong.json").unlink()
    sae.eval(run=str(again), dictionary="strong", n_behaviour_tokens=64)
    sae.analyze(run=str(again), dictionary="strong")
    export(again, out)
    expected = sae.load(str(run / "dictionaries/weak")).digest
    assert sae.load(str(out / HOOK)).digest == expected


def test_a_card_edited_by_hand_is_kept_and_never_replaced(run, out, capsys):
    card = out / "README.md"
    card.write_text(card.read_text().replace("autoencoder", "autoEncoder"))
    edited = card.read_text()
    export(run, out)
    assert "is finished already and is reused" in capsys.readouterr().err
    assert card.read_text() == edited
    sentence = r"would be replaced, but README\.md in it changed since it was exported; move"
    refused(run, out, sentence, license="mit")
    card.unlink()
    export(run, out, license="mit")
    assert 'license: "mit"' in card.read_text()


def test_what_comes_into_the_folder_while_it_is_written_stays(run, tmp_path, monkeypatch):
    out, whole = tmp_path / "out", sae.publishing.folder.write_stamp

    def meanwhile(*arguments):
        whole(*arguments)
        out.mkdir()
        (out / "words").touch()

    monkeypatch.setattr(sae.publishing.folder, "write_stamp", meanwhile)
    with pytest.raises(UserError, match="out contains something that is not an export"):
        export(run, out)
    assert list(tmp_path.rglob("*")) == [out, out / "words"]


@pytest.mark.parametrize("name", [f"{HOOK}/sae_weights.safetensors", "labels.csv"])
def test_another_file_that_changed_is_neither_reused_nor_replaced(name, run, out):
    content = (out / name).read_bytes()
    (out / name).write_bytes(content[:-1] + b"x")
    refused(run, out, f"would be replaced, but {name} in it changed since it was exported")


@pytest.mark.parametrize("name", ["README.md", "features.parquet", f"{HOOK}/cfg.json"])
def test_a_file_that_is_gone_comes_back(name, run, out, capsys):
    before = files(out)
    (out / name).unlink()
    export(run, out)
    assert files(out) == before
    assert "reused" not in capsys.readouterr().err


def test_a_link_to_a_folder_is_followed(run, tmp_path):
    place, link = tmp_path / "disk/place", tmp_path / "link"
    place.parent.mkdir()
    link.symlink_to(place)
    (place.parent / ".place.01234567.partial").mkdir()
    (tmp_path / ".link.01234567.partial").mkdir()
    assert export(run, link) == link
    assert link.is_symlink()
    assert "README.md" in files(place)
    # What is left of a killed export is beside the place and not beside the link.
    assert list(place.parent.iterdir()) == [place]
    assert (tmp_path / ".link.01234567.partial").exists()
    (place / "mine").write_text("words")
    refused(run, link, "holds mine beside the export")


def test_a_link_to_a_place_that_may_not_be_written_is_refused_at_once(run, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file/place")
    with pytest.raises(UserError, match="a file is in the way of the folder"):
        export(run, tmp_path / "link")


def test_a_file_in_place_of_the_folder_stays(run, tmp_path):
    (tmp_path / "out").write_text("words")
    with pytest.raises(UserError, match="out is a file, where an export is a folder; choose"):
        export(run, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "words"


@pytest.mark.parametrize("inner", ["", "inner"])
def test_the_folder_that_you_are_in_is_not_replaced(inner, run, tmp_path, monkeypatch):
    here = tmp_path / "here"
    (here / inner).mkdir(parents=True)
    monkeypatch.chdir(here / inner)
    sentence = (
        "as a whole, but it is a disk of its own or your current folder"
        if not inner
        else "not an export"
    )
    with pytest.raises(UserError, match=sentence):
        export(run, "." if not inner else "..")
    assert here.is_dir()


def test_a_disk_of_its_own_is_refused_and_a_folder_on_it_is_not(run, small_disk):
    disk = small_disk(10_000_000)
    with pytest.raises(
        UserError, match="as a whole, but it is a disk of its own or your current folder"
    ):
        export(run, disk)
    assert sae.load(str(export(run, disk / "out") / HOOK)).d_sae == 64


def test_an_empty_folder_is_filled(run, tmp_path):
    (tmp_path / "out").mkdir()
    assert sae.load(str(export(run, tmp_path / "out") / HOOK)).d_sae == 64


@pytest.fixture
def changed(run, tmp_path):
    """A run of its own, whose atlas may be changed."""
    return shutil.copytree(run, tmp_path / "run")


@pytest.mark.parametrize("table", ["features", "contexts"])
@pytest.mark.parametrize("gone", [True, False])
def test_a_table_that_is_missing_or_damaged_is_a_sentence(table, gone, changed, tmp_path):
    path = changed / f"atlas/strong/{table}.parquet"
    if gone:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20])
    for words in ({}, {"drop_dead": True}):
        with pytest.raises(UserError, match=rf"{table}\.parquet is (missing|damaged)"):
            export(changed, tmp_path / "out", **words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [None, "\ufeffFeature;Label\n7;my own, words\n"])
def test_labels_come_out_whole_whatever_a_spreadsheet_left(content, changed, tmp_path):
    path = changed / "atlas/strong/labels.csv"
    path.unlink()
    if content is not None:
        path.write_text(content)
    found = export(changed, tmp_path / "out")
    expected = read_labels(path.parent).label
    assert (expected[7] == "my own, words") == (content is not None)
    with (found / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["feature", "label", "explanation"]
    assert [int(row["feature"]) for row in rows] == list(range(64))
    assert read_labels(found).label == expected
    assert pyarrow.parquet.read_metadata(found / "features.parquet").num_rows == 64


def test_a_dictionary_as_saelens_left_it_is_exported(changed, tmp_path):
    path = changed / "dictionaries/strong/cfg.json"
    config = json.loads(path.read_text())
    del config["metadata"]["sae_atlas"]
    unseal(path.parent)
    path.write_text(json.dumps(config))
    found = sae.load(str(export(changed, tmp_path / "out") / HOOK))
    assert torch.equal(found.W_dec, sae.load(str(path.parent)).W_dec)


def test_the_last_line_says_where_it_is_and_how_large(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", f"run={run}", "dictionary=strong", f"out={out}"]) == 0
    n_bytes = sum(map(len, files(out).values()))
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"export: {out}: {len(files(out))} files, {n_bytes / 1e3:.3g} kB"
