"""Writing files so that a reader sees the old content or the new, never half of it."""

import errno
import glob
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sae.base.errors import UserError


@contextmanager
def explained_failures(path: Path) -> Iterator[None]:
    """Turn the system's refusals (no space, no permission) into a sentence about `path`."""
    try:
        yield
    except OSError as error:
        path = _final(path)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{path}: the disk is full; free some space and run the same command again, "
                "what is finished is kept"
            ) from error
        if error.errno == errno.EFBIG:
            raise UserError(
                f"{path}: the system allows no file of this size here; raise its limit "
                "(ulimit -f) or choose another disk"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(
                f"{path}: no permission to write here; choose another folder"
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise UserError(
                f"{path}: a file is in the way of this folder; move it or choose another folder"
            ) from error
        raise


def _final(path: Path) -> Path:
    """Return the path that people know: without suffixes of folders that are not yet whole."""
    parts = [re.sub(r"^\.(.+)\.[0-9a-f]{8}\.partial$", r"\1", part) for part in path.parts]
    return Path(*parts)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a sibling path to write to, a file or a folder; moved to `path` when all went well.

    A folder that stands at `path` already is replaced as a whole; a link is followed.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    with explained_failures(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if path.is_dir():
                retired = temporary.with_suffix(".old")
                path.rename(retired)
                temporary.rename(path)
                shutil.rmtree(retired)
            else:
                temporary.replace(path)
        finally:
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path, name: str = "*") -> None:
    """Remove what killed processes left in `folder` while they wrote `name`.

    For whoever is sure to be the only one that writes it now.
    """
    wanted = name if name == "*" else glob.escape(name)
    for path in folder.glob(f".{wanted}.{'[0-9a-f]' * 8}.*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, creating its folders."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or broken one is a `UserError` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (ValueError, RecursionError) as error:
        # Broken, in another encoding, nested without end, or with a number of endless digits.
        raise UserError(f"{path}: not readable as JSON ({error})") from error


def whole_lines(path: Path) -> list[str]:
    """Return a text file's lines; the last one is left out while it is being written."""
    # So it is as well after a process that was killed.
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n")]


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return what a file has that holds one JSON object a line, such as `metrics.jsonl`."""
    return [json.loads(line) for line in whole_lines(path)]


@contextmanager
def only_process(path: Path, refusal: Callable[[str], UserError]) -> Iterator[None]:
    """Hold the system's lock on the file `path`, which no death leaves behind.

    Args:
        refusal: what to raise if another process holds it, from who that is (or "").
    """
    import fcntl

    with explained_failures(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise refusal(file.read().strip()) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        # The file stays: whoever removed it could lock another one of the same name.
        yield


def check_writable(folder: Path) -> None:
    """Refuse, before any work, a folder that could not be written to.

    Raises:
        UserError: if the nearest existing ancestor is a file or forbids writing.
    """
    ancestor = folder
    while not ancestor.exists():
        ancestor = ancestor.parent
    if not ancestor.is_dir():
        raise UserError(f"{ancestor}: a file is in the way of the folder {folder}")
    if not os.access(ancestor, os.W_OK):
        raise UserError(f"{ancestor}: no permission to write here; choose another folder")


def free_space(folder: Path) -> int:
    """Bytes that are free where `folder` is or will be."""
    ancestor = folder
    while not ancestor.exists():
        ancestor = ancestor.parent
    return shutil.disk_usage(ancestor).free


def check_free_space(folder: Path, needed: int) -> None:
    """Refuse, before any work, what cannot fit: `needed` bytes under `folder`."""
    free = free_space(folder)
    if needed > free:
        raise UserError(
            f"{folder}: {needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free; "
            "ask for fewer tokens or choose another disk"
        )
