"""Where atlases are, and the dictionaries that they are of."""

from pathlib import Path

from sae.atlas import Atlas
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
    return Atlas.open(location)
