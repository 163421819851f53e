"""Where atlases are, and where dashboards go: folders that appear whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sae.atlas import FEATURES, RECORD_FILE, Atlas
from sae.base import atomic_path, check_writable, digest, require
from sae.base.assets import cache_folder
from sae.dictionary import Dictionary
from sae.run import Run, held


def check_new(target: Path) -> None:
    """Refuse, before any work, a folder that is there already or could not be written."""
    require(not target.exists(), f"{target} is there already; choose another or remove it")
    check_writable(target.parent)


@contextmanager
def new_folder(target: Path, lock: Path | None = None) -> Iterator[Path]:
    """Give a folder to write to, moved to `target` when all went well.

    What a killed process left of it is removed first. Whatever else writes `target` holds the
    `lock` too; by default it is not beside it, for `target` may be anywhere.

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


def dictionary_beside(atlas: Path) -> Dictionary | None:
    """Load the dictionary of the same name in the run that an atlas is, or will be, in."""
    run, name = Run(atlas.resolve().parent.parent), atlas.resolve().name
    return run.load(name)[1] if name in run.dictionary_names else None


def atlas_at(location: Path) -> Atlas:
    """Return the atlas in a folder, or the only one of a run.

    Raises:
        UserError: if there is none, or several to choose from.
    """
    require(location.is_dir(), f"{location} is no folder; give an atlas, or a run that has one")
    if (location / RECORD_FILE).exists() or (location / FEATURES.file).exists():
        return Atlas(location)
    inside = sorted(path.parent for path in Run(location).atlases.glob(f"[!.]*/{RECORD_FILE}"))
    require(
        bool(inside),
        f"{location} holds no atlas; give the folder of one, or a run for which sae analyze "
        "has made one",
    )
    require(
        len(inside) == 1,
        f"{location} has {len(inside)} atlases; give one: {', '.join(map(str, inside))}",
    )
    return Atlas(inside[0])
