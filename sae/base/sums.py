"""`SHA256SUMS`: the digest of each file of an artefact as it was written, so that damage shows.

The file lies in the folder and has the form of `sha256sum`, which can check it too. Of files
that are made one by one a line is added before the file gets its name, and the last line of a
name counts. Whoever reads or reuses a file asks first whether it is whole. Where no line names
it, as in folders from before and from elsewhere, nothing tells, and it is taken as it is.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from sae.base.errors import UserError
from sae.base.files import write_text
from sae.base.whole import atomic_path

SUMS_FILE = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_SMALL = 1 << 20
"""Up to so many bytes a file is read again each time it is asked about."""


def seal(folder: Path, *edited: str) -> None:
    """Write the digests of all that is in a finished folder.

    Args:
        edited: patterns of files that are meant to be changed later, which are left out.
    """
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in files)
    lines = [
        f"{_digest(folder / name)}  {name}\n"
        for name in names
        if name != SUMS_FILE and not any(fnmatchcase(name, pattern) for pattern in edited)
    ]
    write_text(folder / SUMS_FILE, "".join(lines))


@contextmanager
def sealed_path(path: Path) -> Iterator[Path]:
    """Give a place to write a file to as `atomic_path` does, and note what it then holds."""
    with atomic_path(path) as temporary:
        yield temporary
        note(path, temporary)


def note(path: Path, written: Path) -> None:
    """Note that a file, which is going to be at `path`, holds what the file `written` does."""
    with (path.parent / SUMS_FILE).open("ab+") as file:
        # Half a line, as a full disk leaves it, is no beginning of this one.
        end = file.seek(0, 2)
        file.seek(max(0, end - 1))
        ending = "" if file.read() in (b"", b"\n") else "\n"
        file.write(f"{ending}{_digest(written)}  {path.name}\n".encode())


def damaged(folder: Path, *patterns: str) -> list[str]:
    """Return which files that were written into a folder are gone, or are not as they were.

    Args:
        patterns: names to look at; all of them if none is given.
    """
    sums = _sums(folder)
    wanted = [n for n in sums if not patterns or any(fnmatchcase(n, p) for p in patterns)]
    return [name for name in wanted if not _is(folder / name, sums[name])]


def is_whole(path: Path, *, unknown: bool = True) -> bool:
    """Return whether a file is as it was written.

    Args:
        unknown: what is said where nothing tells.
    """
    found = _sums(path.parent).get(path.name)
    return unknown if found is None else _is(path, found)


def check_whole(path: Path, cure: str) -> None:
    """Refuse a file that is not as it was written.

    Args:
        cure: says what makes it anew.

    Raises:
        UserError: if its content is another one than when it was written.
    """
    if path.is_file() and not is_whole(path):
        raise _refusal(path, path.parent, cure)


def check_folder(folder: Path, cure: str) -> None:
    """Refuse a folder in which a file is gone, or is not as it was written.

    Args:
        cure: says what makes it anew.

    Raises:
        UserError: that names the first such file.
    """
    for name in damaged(folder):
        raise _refusal(folder / name, folder, cure)


def _refusal(path: Path, folder: Path, cure: str) -> UserError:
    what = "damaged, for it does not hold what was written into it" if path.exists() else "gone"
    return UserError(
        f"{path} is {what}; {cure} (if somebody changed it on purpose, remove "
        f"{folder / SUMS_FILE})"
    )


def _sums(folder: Path) -> dict[str, str]:
    path = folder / SUMS_FILE
    try:
        about = path.stat()
        return _parsed(path, about.st_size, about.st_mtime_ns, about.st_ino)
    except OSError:
        return {}


@lru_cache(64)
def _parsed(path: Path, *_: int) -> dict[str, str]:
    text = path.read_text(encoding="utf-8", errors="replace")
    matches = (_LINE.fullmatch(line) for line in text.split("\n"))
    return {match[2]: match[1] for match in matches if match}


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and _digest(path) == digest


def _digest(path: Path) -> str:
    about = path.stat()
    if about.st_size <= _SMALL:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return _read_once(path, about.st_size, about.st_mtime_ns, about.st_ino)


@lru_cache(4096)
def _read_once(path: Path, *_: int) -> str:
    """Return the digest of a large file, read again only once it has changed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
