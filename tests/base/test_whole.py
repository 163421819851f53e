"""Files and folders that appear whole, whenever a process dies and the power goes."""

import os

import pytest

from sae.base import whole
from sae.base.whole import atomic_path, remove_unfinished


def write_folder(place, content, replace=None):
    with atomic_path(place, replace) as temporary:
        temporary.mkdir()
        (temporary / "file").write_text(content)


@pytest.fixture
def in_two_steps(monkeypatch):
    """A system that cannot have two folders trade places."""
    call = whole._call
    monkeypatch.setattr(whole, "_call", lambda name, *a: name != "renameat2" and call(name, *a))


def test_a_folder_is_never_missing_while_another_one_replaces_it(tmp_path, monkeypatch):
    place, moves = tmp_path / "place", []
    write_folder(place, "old")
    monkeypatch.setattr("pathlib.Path.rename", lambda *a: moves.append(a))
    write_folder(place, "new")
    assert moves == [], "it was moved aside, though this system can do it at once"
    assert (place / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.usefixtures("in_two_steps")
@pytest.mark.parametrize("n_renames", [1, 2, 3])
def test_whoever_dies_between_two_renames_loses_neither_folder(tmp_path, n_renames):
    place = tmp_path / "place"
    write_folder(place, "old")
    child = os.fork()
    if child == 0:
        rename, done = os.rename, []

        def dying(*paths):
            rename(*paths)
            done.append(paths)
            if len(done) == n_renames:
                os._exit(9)

        os.rename = dying
        write_folder(place, "new")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert place.exists() == (n_renames > 1)
    remove_unfinished(tmp_path, "place")
    assert (place / "file").read_text() == ("old" if n_renames == 1 else "new")
    assert list(tmp_path.iterdir()) == [place]


def test_all_of_a_folder_that_stepped_aside_is_put_back_and_the_rest_removed(tmp_path):
    for name in (".a.0123abcd.old", ".b.0123abcd.old", ".b.0123abcd.partial", "b", ".c.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    remove_unfinished(tmp_path)
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*/*"))
    assert found == [".c.old/.c.old", "a/.a.0123abcd.old", "b/b"]


@pytest.fixture
def steps(monkeypatch):
    """What is brought to the disk, and what gets its name, in turn."""
    found, fsync, replace, rename = [], os.fsync, os.replace, os.rename

    def synced(descriptor):
        found.append(f"sync {os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}'))}")
        fsync(descriptor)

    def named(move):
        def moved(a, b):
            found.append(f"name {os.path.basename(b)}")
            move(a, b)

        return moved

    def called(name, *arguments):
        found.append(name)
        return True

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", named(replace))
    monkeypatch.setattr(os, "rename", named(rename))
    monkeypatch.setattr(whole, "_call", called)
    return found


def plain(steps, folder):
    words = (step.split(" ") for step in steps)
    return [
        " ".join(w.split(".")[1] if w.startswith(".") else w for w in pair) for pair in words
    ]


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_is_then(tmp_path, steps):
    with atomic_path(tmp_path / "one") as temporary:
        temporary.write_text("content")
    assert plain(steps, tmp_path) == ["sync one", "name one", f"sync {tmp_path.name}"]


@pytest.mark.parametrize("n", [2, 200])
def test_a_folder_is_brought_to_the_disk_once_whatever_is_written_in_it(tmp_path, steps, n):
    with atomic_path(tmp_path / "one") as temporary:
        temporary.mkdir()
        for number in range(n):
            with atomic_path(temporary / f"{number}") as inside:
                inside.write_text("content")
    found = [s for s in plain(steps, tmp_path) if s not in {f"name {i}" for i in range(n)}]
    alone = ["sync 0", "sync 1", "sync one"] if n == 2 else ["syncfs"]
    assert sorted(found[:-2]) == alone
    assert found[-2:] == ["name one", f"sync {tmp_path.name}"]
