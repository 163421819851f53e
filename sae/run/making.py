"""How an artefact is made once and then found again: reused, locked, swept, written whole.

`make` is the one place that reuses what is there, lets one process alone make it, sweeps away
what a killed process left, and writes whole or not at all.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from sae.base import (
    UserError,
    atomic_path,
    check_writable,
    digest,
    note,
    only_process,
    remove_unfinished,
    require,
    say,
    unfinished,
)
from sae.base.assets import cache_folder
from sae.base.names import check_new


class Artefact(Protocol):
    """Something that a command makes once and then finds again."""

    @property
    def place(self) -> str:
        """The place of the artefact, as it is shown to people."""

    def is_current(self) -> bool:
        """Return whether it is there, made of what it would be made of now."""

    def is_littered(self) -> bool:
        """Return whether processes that were killed left something of it."""

    def held(self) -> AbstractContextManager[None]:
        """Be the only process that makes it, or refuse; what killed ones left is removed."""


@dataclass(frozen=True, slots=True)
class PathArtefact:
    """A file or a folder that appears all at once."""

    path: Path
    current: Callable[[], bool]
    """Tells whether it is there, made of what it would be made of now."""
    lock: Path | None = None
    """File to lock; beside the path if left out."""
    work: Path | None = None
    """Folder of what outlives a kill until it is made."""

    @property
    def place(self) -> str:
        return str(self.path)

    def is_current(self) -> bool:
        return self.current()

    def is_littered(self) -> bool:
        begun = self.work is not None and self.work.exists()
        return begun or bool(unfinished(self.path.parent, self.path.name))

    @contextmanager
    def held(self) -> Iterator[None]:
        with held(self.path, self.lock or self.path.parent / f".{self.path.name}.lock"):
            yield
            if self.work is not None:
                shutil.rmtree(self.work, ignore_errors=True)


@contextmanager
def held(path: Path, lock: Path) -> Iterator[None]:
    """Be the only process that makes `path`, or refuse; what killed ones left is removed."""

    def refusal(owner: str) -> UserError:
        who = f" ({owner})" if owner else ""
        return UserError(
            f"{path} is being made by another process{who}; wait until that is done, or "
            "give this one another name or place"
        )

    check_new(str(path))
    check_writable(path.parent)
    with only_process(lock, refusal):
        remove_unfinished(path.parent, path.name)
        yield


def lock_of(kind: str, place: Path) -> Path:
    """Return the lock of whoever writes `place`; not beside it, for it may be anywhere."""
    return cache_folder() / "locks" / f"{kind}-{digest(str(place.resolve()))}"


def check_free(target: Path) -> None:
    """Refuse, before any work, a folder that is there already or could not be written."""
    require(not target.exists(), f"{target} exists already; choose another one or remove it")
    check_writable(target.parent)


@contextmanager
def new_folder(target: Path, lock: Path) -> Iterator[Path]:
    """Give a folder to write to, moved to `target` when all went well.

    What a killed process left of it is removed first. Whatever else writes `target` holds the
    `lock` too.

    Raises:
        UserError: if it is there, or another process writes it.
    """
    check_free(target)
    with held(target, lock), atomic_path(target) as temporary:
        temporary.mkdir()
        yield temporary
        # Whoever does not know of the lock may have made one meanwhile.
        check_free(target)


def make(
    path: Path,
    current: Callable[[], bool],
    build: Callable[[Path], None],
    *,
    command: str,
    lock: Path | None = None,
    work: Path | None = None,
    replace: Callable[[Path, Path], None] | None = None,
) -> bool:
    """Make a file or a folder, unless it is there already, and return whether it was made.

    Args:
        current: tells whether it is there, made of what it would be made of now.
        build: writes it at the place that it is given, which is moved to `path` at the end.
        command: begins the sentences that are said.
        lock: file to lock; beside the path if left out.
        work: folder in which `build` keeps what is to outlive a kill; it goes in the end.
        replace: puts a new folder in the place of one that stands there, see `atomic_path`.

    Raises:
        UserError: if another process makes it.
    """

    def build_whole(_: Sequence[PathArtefact]) -> None:
        with atomic_path(path, replace) as temporary:
            build(temporary)
            if temporary.is_file():
                note(path, temporary)

    artefact = PathArtefact(path, current, lock, work)
    return bool(make_together([artefact], build_whole, command=command))


AnyArtefact = TypeVar("AnyArtefact", bound=Artefact)


def make_together(
    artefacts: Sequence[AnyArtefact],
    build: Callable[[Sequence[AnyArtefact]], None],
    *,
    command: str,
    check: Callable[[Sequence[AnyArtefact]], None] = lambda _: None,
) -> list[AnyArtefact]:
    """Make several artefacts but those that are there already, and return those made.

    Args:
        build: makes those that it is given, each whole or not at all.
        command: begins the sentences that are said.
        check: refuses those that cannot be made, before anything is locked or written.

    Raises:
        UserError: if another process makes one of them.
    """
    left = missing(artefacts, command)
    if left:
        check(left)
    with ExitStack() as stack:
        for one in left:
            stack.enter_context(one.held())
        # Asked again: whoever held it before may have finished it.
        left = [one for one in left if not one.is_current()]
        if left:
            build(left)
    return left


def _tidy(artefact: Artefact) -> None:
    """Remove what killed processes left of an artefact that is there, if nobody makes it now.

    Where that cannot be done, as on a disk that may only be read, it stays.
    """
    if artefact.is_littered():
        with suppress(UserError, OSError), artefact.held():
            pass


def missing(artefacts: Sequence[AnyArtefact], command: str) -> list[AnyArtefact]:
    """Return those that are still to be made; of the others it is said that they are reused."""
    left = [one for one in artefacts if not one.is_current()]
    for one in left:
        check_new(one.place)
    reused = [one.place for one in artefacts if one not in left]
    if len(reused) == 1:
        say(f"{command}: {reused[0]} is finished already and is reused")
    elif reused:
        say(f"{command}: {len(reused)} of {len(artefacts)} are finished already and are reused")
    for one in artefacts:
        if one not in left:
            _tidy(one)
    return left
