"""`export.json`: of what an export is, and which files it wrote.

By it an export knows what is its own. Nothing else is ever replaced, in a folder or on the Hub.
"""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sae.base import UserError, digest, read_json, write_json
from sae.dictionary import Dictionary
from sae.exchange.public import public

STAMP_FILE = "export.json"
CARD_FILE = "README.md"
DIRECTIONS_FILE = "decoder.safetensors"
LAYOUT = 4
"""Version of the folder and its stamp; a stamp of another version is nobody's."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What an export says of itself."""

    digest: str
    """Identifies everything that went into the export."""
    of: dict[str, str]
    """Which dictionary: what stays the same when it is trained again."""
    figures: dict[str, Any]
    shrunk: dict[str, Any] | None
    """What was made smaller, if anything was."""
    files: dict[str, str]
    """SHA-256 of every file but the stamp."""


def subject(name: str, dictionary: Dictionary) -> dict[str, str]:
    """Return which dictionary an export is of; the export of another one is not replaced."""
    return {
        "dictionary": name,
        "model_name": public(dictionary.model_name),
        "hook_name": dictionary.hook_name,
        "hook_name_out": dictionary.hook_name_out,
    }


def spoken(of: dict[str, str]) -> str:
    """Return a subject in words."""
    return f"{of['dictionary']} ({of['model_name']} at {of['hook_name']})"


def write_stamp(
    folder: Path,
    digest: str,
    of: dict[str, str],
    figures: dict[str, Any],
    shrunk: dict[str, Any] | None,
) -> None:
    """Write the stamp of a folder that is finished but for it."""
    files = {name: _sha256(folder / name) for name in sorted(_names(folder))}
    found = asdict(Stamp(digest, of, figures, shrunk, files))
    write_json(folder / STAMP_FILE, found | {"seal": _seal(found)})


def read_stamp(path: Path) -> Stamp | None:
    """Return what the file says; None of one that an export of this layout has not left so."""
    try:
        found = read_json(path)
        if found.pop("seal") != _seal(found):
            return None
        # Stamps from before may say where the model was on the disk of then.
        of = {**found["of"], "model_name": public(found["of"]["model_name"])}
        return Stamp(**{**found, "of": of})
    except (UserError, AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None


def differences(folder: Path, stamp: Stamp) -> tuple[list[str], list[str], list[str]]:
    """Return which files are strange, missing or edited since the export of the folder."""
    there, known = _names(folder), set(stamp.files)
    edited = (
        name
        for name in there & known
        if not (folder / name).is_file() or _sha256(folder / name) != stamp.files[name]
    )
    return sorted(there - known), sorted(known - there), sorted(edited)


def _seal(found: dict[str, Any]) -> str:
    return digest([LAYOUT, found])


def _names(folder: Path) -> set[str]:
    """All that is in a folder and is no folder, links among them, but for the stamp."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in paths} - {STAMP_FILE}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
