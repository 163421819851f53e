"""Which atlases of a run can be shown, and why others cannot."""

from pathlib import Path

from sae.atlas import read_record
from sae.base import UserError, check_folder, require
from sae.run import Run

_PAGE_FILES = ("index.html", "data/index.js", "data/labels.js")


def why_none(run: Run) -> str:
    """Return why a run without an atlas has none, and what makes one."""
    folder = run.folder
    begun = sorted(path.name[1:-5] for path in run.atlases.glob(".*.work"))
    if begun:
        return (
            f"the atlas of {begun[0]} in {folder} is not finished; go on with: "
            f"sae analyze run={folder} dictionary={begun[0]}"
        )
    return f"{folder} has no atlas; make one with: sae analyze run={folder}"


def check_shown(folder: Path, expected: Path) -> None:
    """Refuse an atlas that cannot be shown.

    Args:
        folder: the atlas.
        expected: where it lies if no link is on the way to it.

    Raises:
        UserError: for a link, a record of another version, or missing or damaged files.
    """
    again = f"sae analyze run={folder.parent.parent} dictionary={folder.name}"
    require(
        folder.resolve() == expected,
        f"{folder} is a link, and only what lies in the run is served; copy the atlas there",
    )
    read_record(folder)
    missing = [name for name in _PAGE_FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} has no {missing[0]}; make it again with: {again}")
    check_folder(folder, f"make it again with: {again}")
