"""Files of text and JSON, locks, and whether there is room and leave to write."""

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from sae.base.errors import UserError
from sae.base.progress import say
from sae.base.whole import atomic_path, explained_failures


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
        raise UserError(f"{path}: there is no such file") from error
    except (ValueError, RecursionError) as error:
        # Broken, in another encoding, nested without end, or with a number of endless digits.
        raise UserError(f"{path}: this cannot be read as JSON ({error})") from error


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return what a file has that holds one JSON object a line, such as `metrics.jsonl`.

    The last line is left out while it is being written, as after a process that was killed.
    Lines that a damage has made something else are left out too, and their number is said.
    """
    *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    found = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            if isinstance(value := json.loads(line), dict):
                found.append(value)
    if lost := len(lines) - len(found):
        say(f"{path}: {lost} damaged line{'s are' if lost > 1 else ' is'} left out")
    return found


@contextmanager
def only_process(path: Path, refusal: Callable[[str], UserError]) -> Iterator[None]:
    """Hold the system's lock on the file `path`, which no death leaves behind.

    Args:
        refusal: what to raise if another process holds it, from who that is (or "").
    """
    import fcntl

    with _lock_file(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise refusal(file.read().strip()) from error
        # For people; a full disk, of which the work itself has to tell, is no reason to stop.
        with suppress(OSError):
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the system's lock on the file `path`; wait while another process holds it."""
    import fcntl

    with _lock_file(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _lock_file(path: Path) -> TextIO:
    """Open a file to lock. It stays: a removed one could be locked beside a new one."""
    with explained_failures(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+")


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
        raise UserError(
            f"{ancestor}: there is no permission to write here; choose another folder"
        )


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
