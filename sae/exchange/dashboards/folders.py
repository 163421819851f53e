"""Where atlases are, and the dictionaries that they are of."""

from pathlib import Path

from sae.atlas import FEATURES, RECORD_FILE, Atlas
from sae.base import require
from sae.dictionary import Dictionary
from sae.run import Run


def dictionary_beside(atlas: Path) -> Dictionary | None:
    """Load the dictionary of the same name in the run that an atlas is, or will be, in."""
    run, name = Run(atlas.resolve().parent.parent), atlas.resolve().name
    return run.load(name)[1] if name in run.dictionary_names else None


def atlas_at(location: Path) -> Atlas:
    """Return the atlas in a folder, or the only one of a run.

    Raises:
        UserError: if there is none, or several to choose from.
    """
    require(
        location.is_dir(), f"{location} is not a folder; give an atlas, or a run that has one"
    )
    if (location / RECORD_FILE).exists() or (location / FEATURES.file).exists():
        return Atlas(location)
    inside = sorted(path.parent for path in Run(location).atlases.glob(f"[!.]*/{RECORD_FILE}"))
    require(
        bool(inside),
        f"{location} contains no atlas; give the folder of an atlas, or a run for which sae "
        "analyze has made one",
    )
    require(
        len(inside) == 1,
        f"{location} has {len(inside)} atlases; give one: {', '.join(map(str, inside))}",
    )
    return Atlas(inside[0])
