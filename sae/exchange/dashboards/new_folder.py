"""Folders that appear whole or not at all, and never in the place of another one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sae.base import atomic_path, check_writable, digest, require
from sae.base.assets import cache_folder
from sae.run import held


def check_new(target: Path) -> None:
    """Refuse, before any work, what is there already or could not be written.

    Raises:
        UserError: if it is so.
    """
    require(not target.exists(), f"{target} is there already; choose another or remove it")
    check_writable(target.parent)


@contextmanager
def new_folder(target: Path, lock: Path | None = None) -> Iterator[Path]:
    """Give a folder to write to, moved to `target` when all went well.

    What a killed process left of it is removed first.

    Args:
        lock: what else writes `target` holds too; by default one that is not beside it, for
            `target` may be anywhere.

    Raises:
        UserError: if it is there, or another process writes it.
    """
    check_new(target)
    lock = lock or cache_folder() / "locks" / f"atlas-{digest(str(target.resolve()))}"
    with held(target, lock), atomic_path(target) as temporary:
        temporary.mkdir()
        yield temporary
        # Whoever does not know of the lock may have made one meanwhile.
        check_new(target)
