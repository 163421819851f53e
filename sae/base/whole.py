"""Files and folders that appear whole or not at all, and stay whatever happens afterwards.

What is written lies beside its place, as `.NAME.0123abcd.partial`. It is on the disk before it
gets its name, and so is the name before anything builds on it: not even a power cut leaves half
of something under a name. A folder that replaces another one trades places with it in one step,
where the system can do that.
"""

import ctypes
import errno
import glob
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sae.base.errors import UserError

_UNFINISHED = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.(?P<kind>partial|old)", re.DOTALL)
_FEW = 16
"""Up to so many files of a folder are brought to the disk one by one, more of them at once."""
_AT_CWD = -100
_EXCHANGE = 2


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
                "which keeps what is finished"
            ) from error
        if error.errno == errno.EFBIG:
            raise UserError(
                f"{path}: the system does not allow a file of this size; raise the limit "
                "(ulimit -f) or choose another disk"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(
                f"{path}: there is no permission to write here; choose another folder"
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise UserError(
                f"{path}: a file is in the way of this folder; move it or choose another folder"
            ) from error
        raise


def _final(path: Path) -> Path:
    """Return the path that people know: without suffixes of folders that are not yet whole."""
    matches = (_UNFINISHED.fullmatch(part) for part in path.parts)
    pairs = zip(path.parts, matches, strict=True)
    return Path(*(match["name"] if match else part for part, match in pairs))


@contextmanager
def atomic_path(
    path: Path, replace: Callable[[Path, Path], None] | None = None
) -> Iterator[Path]:
    """Give a sibling path to write to, a file or a folder; moved to `path` when all went well.

    A folder that stands at `path` already is replaced as a whole; a link is followed.

    Args:
        replace: puts the new folder in the place of one that stands there, and the other way
            around; `exchange` if left out.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    # Parts of a folder that is not whole yet are brought to the disk together with it.
    alone = _final(path) == path
    with explained_failures(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if alone:
                _bring_to_disk(temporary)
            if path.is_dir():
                (replace or exchange)(temporary, path)
            else:
                temporary.replace(path)
            if alone:
                _sync(path.parent)
        finally:
            _remove(temporary)


def exchange(new: Path, old: Path) -> None:
    """Have two folders that lie side by side trade places: what is at `new` is then at `old`.

    Where the system cannot do it in one step, the old one steps aside first; after a kill
    between the two steps `remove_unfinished` puts it back.
    """
    if _call("renameat2", _AT_CWD, os.fsencode(new), _AT_CWD, os.fsencode(old), _EXCHANGE):
        return
    aside = new.with_suffix(".old")
    old.rename(aside)
    new.rename(old)
    aside.rename(new)


def _call(name: str, *arguments: int | bytes) -> bool:
    """Call a function of the C library, and return whether it is there and did its work."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    return function is not None and function(*arguments) == 0


def _bring_to_disk(path: Path) -> None:
    """Wait until a file, or all of a folder, is on the disk and not in memory alone."""
    if not path.is_dir():
        _sync(path)
        return
    inside = list(path.rglob("*"))
    if len(inside) > _FEW:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if _call("syncfs", descriptor):
                return
        finally:
            os.close(descriptor)
    for one in (*inside, path):
        if not one.is_symlink():
            _sync(one)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some systems do not do this for folders, or for files of other machines.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def unfinished(folder: Path, name: str = "*") -> list[Path]:
    """Return what killed processes left in `folder` while they wrote `name`, or anything."""
    wanted = name if name == "*" else glob.escape(name)
    found = folder.glob(f".{wanted}.{'[0-9a-f]' * 8}.*")
    return sorted(path for path in found if _UNFINISHED.fullmatch(path.name))


def remove_unfinished(folder: Path, name: str = "*") -> None:
    """Remove what killed processes left in `folder` while they wrote `name`.

    A folder that had stepped aside for a new one, which never came, is put back. For whoever is
    sure to be the only one that writes it now.
    """
    for path in unfinished(folder, name):
        match = _UNFINISHED.fullmatch(path.name)
        if match and match["kind"] == "old" and not (place := folder / match["name"]).exists():
            path.rename(place)
        else:
            _remove(path)
