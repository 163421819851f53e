"""What may be the name of a file or folder: of what we make, and of what we look for."""

import os
from pathlib import Path

from sae.base.errors import UserError, require

_LONGEST = 255
"""Bytes that a system allows in the name of a file or folder."""
_LONGEST_OURS = 200
"""Bytes of a name that we give: while it is written, or beside its lock, it is longer."""
_SHOWN = 80
"""Characters of a name that a sentence repeats."""


def check_name(name: str, given: str) -> None:
    """Refuse what cannot be the name of one artefact, such as a dictionary.

    Names that begin with a dot are those of files that are not yet whole, and nothing lists
    them; what no terminal prints would be listed as something else.

    Args:
        given: begins the sentence, such as `name=x`.

    Raises:
        UserError: that says what would be right.
    """
    length = len(name.encode("utf-8", "surrogateescape"))
    for fits, sentence in (
        (
            "/" not in name and name not in ("", ".."),
            "no name of one folder; leave out slashes",
        ),
        (not name.startswith("."), "a hidden name; leave out the dot that it begins with"),
        (name.isprintable(), "not printable; leave out line ends and control characters"),
        (name == name.strip(), "a name with a space at one end; leave it out"),
        (length <= _LONGEST_OURS, f"{length} bytes long; give {_LONGEST_OURS} at most"),
    ):
        require(fits, f"{_shown(given)} is {sentence}")


def _shown(given: str) -> str:
    said = given if given.isprintable() else given.encode("unicode_escape").decode()
    return said if len(said) <= _SHOWN else f"{said[:_SHOWN]}..."


def check_new(place: str) -> None:
    """Refuse a place for an artefact if a file or folder that it would make has no fit name.

    Folders that are there already have the names that they have, and so have object stores.

    Raises:
        UserError: that names the first part which does not fit.
    """
    if "://" in place:
        return
    try:
        # Where it leads: the working folder counts, and so do links.
        check_names(os.path.realpath(place))
    except FileNotFoundError as error:
        raise UserError("the current folder no longer exists; change to another one") from error
    path = Path(place)
    for new in (path, *path.parents):
        # What stands at the end is made in any case; above it, only what is not there.
        if new.name not in ("", "..") and (new == path or not new.exists()):
            check_name(new.name, f"{new.name} in {place}")


def from_anywhere(path: str) -> str:
    """Return what a path is called from every working directory."""
    given = Path(path).expanduser()
    # Links are kept as they are named, unless `..` leads elsewhere behind one.
    absolute = os.path.abspath(given)
    same = not given.exists() or (os.path.exists(absolute) and given.samefile(absolute))
    return absolute if same else str(given.resolve())


def check_utf8(word: str) -> None:
    """Refuse a name with bytes that are not UTF-8: no record could hold it.

    Raises:
        UserError: that asks for another name.
    """
    for part in word.split("/"):
        # Python gives each such byte as half of a character.
        odd = any("\ud800" <= character <= "\udfff" for character in part)
        require(not odd, f"{_shown(part)} is not UTF-8; rename that file or folder")


def check_names(path: str | Path) -> None:
    """Refuse, before it is looked for, a path that no system has room for.

    Raises:
        UserError: if a name in it is too long, or holds a character that no name can hold.
    """
    check_utf8(str(path))
    for name in Path(path).parts:
        length = len(name.encode("utf-8", "surrogateescape"))
        require(
            "\0" not in name, f"{_shown(str(path))} contains a character that no path may have"
        )
        require(
            length <= _LONGEST,
            f"{name[:20]}... has {length} bytes, and the name of a file or folder can have "
            f"at most {_LONGEST}; give a shorter one",
        )
