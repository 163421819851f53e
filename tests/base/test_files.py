"""Writing files and folders whole or not at all."""

import pytest

from sae.base.files import write_text
from sae.base.whole import atomic_path


def test_a_link_to_a_file_is_followed(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "real.txt").read_text() == "new"
    assert (tmp_path / "link.txt").is_symlink()


def test_a_link_to_a_folder_is_followed_and_nothing_is_left_beside_it(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old.txt").write_text("old")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "link").symlink_to(tmp_path / "real")
    with atomic_path(tmp_path / "links" / "link") as temporary:
        temporary.mkdir()
        (temporary / "new.txt").write_text("new")
    assert [p.name for p in (tmp_path / "real").iterdir()] == ["new.txt"]
    assert [p.name for p in (tmp_path / "links").iterdir()] == ["link"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["links", "real"]


def test_the_folder_where_one_stands_can_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a"):
        raise ZeroDivisionError
    inside = tmp_path / "here"
    inside.mkdir()
    monkeypatch.chdir(inside)
    with atomic_path(inside.relative_to(inside)) as temporary:
        temporary.mkdir()
        (temporary / "new.txt").write_text("new")
    assert (inside / "new.txt").read_text() == "new"
