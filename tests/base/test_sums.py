"""Digests of files as they were written: damage shows, and nothing else does."""

import hashlib
import shutil
import subprocess

import pytest

from sae.base import UserError, check_whole, damaged, is_whole, seal, sealed_path


@pytest.fixture
def folder(tmp_path):
    """Two files, one of them large enough to be remembered, and one to be edited."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "page.js").write_text("page")
    (tmp_path / "table").write_bytes(bytes(range(256)) * 8192)
    (tmp_path / "labels.csv").write_text("mine")
    seal(tmp_path, "labels*.csv")
    return tmp_path


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << (place % 8)
    path.write_bytes(content)


def test_the_digests_are_those_that_others_compute(folder):
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert lines == [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}"
        for name in ("data/page.js", "table")
    ]
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, check=True)


@pytest.mark.parametrize("place", [0, 1_000_000, -1])
def test_a_flipped_bit_is_found_also_in_what_was_whole_a_moment_ago(folder, place):
    assert damaged(folder) == []
    flip(folder / "table", place)
    assert damaged(folder) == ["table"]
    assert damaged(folder, "data/*") == []
    with pytest.raises(UserError, match=r"table is damaged, .*; mend it \(if .* on purpose"):
        check_whole(folder / "table", "mend it")


def test_what_is_gone_or_empty_is_damaged_and_what_people_edit_or_add_is_not(folder):
    (folder / "data" / "page.js").write_text("")
    (folder / "table").unlink()
    (folder / "labels.csv").write_text("mine and yours")
    (folder / "another").touch()
    assert damaged(folder) == ["data/page.js", "table"]


def test_of_a_folder_without_digests_nothing_is_said(folder):
    (folder / "SHA256SUMS").unlink()
    flip(folder / "table", 5)
    assert damaged(folder) == []
    check_whole(folder / "table", "mend it")
    assert not is_whole(folder / "table", unknown=False)


def test_of_files_made_one_by_one_the_last_line_counts_and_half_a_line_does_no_harm(tmp_path):
    for content in ("one", "two"):
        with sealed_path(tmp_path / "part") as temporary:
            temporary.write_text(content)
        assert is_whole(tmp_path / "part", unknown=False)
    with (tmp_path / "SHA256SUMS").open("a") as file:
        file.write("0123abc")
    with sealed_path(tmp_path / "other") as temporary:
        temporary.write_text("three")
    assert is_whole(tmp_path / "other", unknown=False)
    assert is_whole(tmp_path / "part", unknown=False)
    flip(tmp_path / "part", 0)
    assert not is_whole(tmp_path / "part")
    (tmp_path / "SHA256SUMS").write_bytes(b"\xff\xfe\n" * 3)
    assert is_whole(tmp_path / "part")
