"""Names of artefacts and paths: what would be hidden, misread or too long is refused."""

import os
from pathlib import Path

import pytest

import sae
from sae.base.errors import UserError
from sae.base.names import check_new
from sae.cli import main
from sae.config.commands import chosen
from sae.config.compose import build

BAD = {
    ".x": "hidden",
    "..": "no name of one folder",
    "a/b": "no name of one folder",
    "a\nb": "not printable",
    "a\x1b[2Jb": "not printable",
    "a\u202eb": "not printable",
    "a ": "a space at one end",
    " a": "a space at one end",
    "x" * 201: "201 bytes long; give 200 at most",
    "水" * 67: "201 bytes long; give 200 at most",
}


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_would_be_hidden_misread_or_too_long_is_refused(name, tmp_path):
    with pytest.raises(UserError, match=BAD[name]) as caught:
        sae.TrainConfig(name=name)
    assert str(caught.value).isprintable()
    with pytest.raises(UserError, match=BAD[name]):
        sae.ImportConfig(folder=str(tmp_path), name=name)
    # As the place of a run that is not there yet, on the way to the cache inside it.
    if "/" not in name and name != "..":
        with pytest.raises(UserError, match=BAD[name]):
            check_new(f"{tmp_path}/{name}/cache.zarr")


def test_a_name_that_a_sweep_makes_is_checked_like_a_given_one():
    words = ["name='${seed}\nx'", "cache=null"]
    with pytest.raises(UserError, match=r"name=3\\nx is not printable"):
        build(chosen(["train"])[0], [*words, "seed=3"])


def test_names_that_can_be_listed_and_folders_that_are_there_stay_as_they_are(tmp_path):
    sae.TrainConfig(name="größe 水 l1=0.5 [a]")
    sae.TrainConfig(name="x" * 200)
    (tmp_path / ".hidden\nfolder").mkdir()
    check_new(str(tmp_path / ".hidden\nfolder" / "run" / "cache.zarr"))
    check_new("s3://bucket/.x/cache.zarr")


def test_a_path_that_no_system_has_room_for_is_refused_by_commands_that_read(capsys):
    for words in (["eval", f"run={'y' * 300}"], ["harvest", f"data=texts/{'y' * 300}"]):
        assert main(words) == 2
        assert "yyyyy... has 300 bytes" in capsys.readouterr().err


def test_what_is_not_utf_8_is_refused_before_it_is_misread(tmp_path, capsys):
    folder = os.fsdecode(bytes(tmp_path) + b"/" + b"deep" * 20 + b"/gr\xf6\xdfe")
    os.makedirs(folder)
    for word in (f"data={folder}", f"run={folder}/new", f"data='{folder}'"):
        assert main(["harvest", word]) == 2
        said = capsys.readouterr().err
        assert "gr\\udcf6\\udcdfe" in said
        assert "is not UTF-8; rename that file or folder" in said
    with pytest.raises(UserError, match="is not UTF-8; rename that file or folder"):
        sae.HarvestConfig(run=folder).cache_location  # noqa: B018


def test_a_working_folder_or_a_link_that_leads_to_what_is_not_utf_8_is_refused(
    tmp_path, monkeypatch
):
    odd = os.fsdecode(bytes(tmp_path) + b"/\xff")
    os.mkdir(odd)
    (tmp_path / "link").symlink_to(odd)
    with pytest.raises(UserError, match=r"udcff.* is not UTF-8"):
        check_new(str(tmp_path / "link" / "run"))
    monkeypatch.chdir(odd)
    with pytest.raises(UserError, match=r"udcff.* is not UTF-8"):
        check_new("run/cache.zarr")
    os.rmdir(odd)
    with pytest.raises(UserError, match="the current folder no longer exists"):
        check_new("run/cache.zarr")


def harvest_of(*words: str) -> sae.HarvestConfig:
    found = build(chosen(["harvest"])[0], list(words))
    assert isinstance(found, sae.HarvestConfig)
    return found


def test_a_path_that_exists_is_taken_as_it_stands_whatever_is_in_its_name(tmp_path):
    folder = tmp_path / "a ${run} \\${b}"
    folder.mkdir()
    for given in (folder, folder / "*.jsonl"):
        for word in (f"data={given}", f"data='{given}'", f"data.name={given}"):
            assert harvest_of(word).data.name == str(given)
    plain = tmp_path / "x${run}y"
    plain.mkdir()
    assert harvest_of(f"data={plain}").data.name == str(plain)
    assert harvest_of(f"run={plain}/new").run == f"{plain}/new"
    assert Path(harvest_of(f"run={plain}").cache_location) == plain / "cache.zarr"
    # What is not there is an interpolation, as ever.
    assert harvest_of("run=r", "data.name=./${run}/text").data.name == "./r/text"
