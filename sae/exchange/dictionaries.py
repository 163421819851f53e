"""Dictionaries of any format, from and to folders and from the Hugging Face Hub.

There it is `ORG/NAME` or `ORG/NAME:FOLDER`. Where files are a dictionary each, as Qwen's are,
one of them is in the place of the folder. `@REVISION` at the end, or before the folder, is a
branch, a tag or a commit of the repository, where its newest state is not what is meant. If a
repository or folder holds one dictionary further down, it is that one.
"""

import glob
import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from sae.base import UserError, nearest, require
from sae.base.names import check_names
from sae.dictionary import Dictionary
from sae.exchange.formats import FORMATS, read_dictionary, write_dictionary
from sae.exchange.stamp import STAMP_FILE, read_stamp
from sae.run import Run

RECOMMENDED = "recommended"
"""What to give in place of a name for the dictionary that a run's comparison recommends."""
_ID = re.compile(
    r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<before>[^@:]+))?(?::(?P<folder>[^@]+))?"
    r"(?:@(?P<revision>[^@:]+))?"
)


def load(path: str, format: str | None = None) -> Dictionary:
    """Load a trained dictionary, ours or one in any format of `docs/formats.md`.

    Args:
        path: the folder of the dictionary, its file for the formats of OpenAI and Qwen, or
            `ORG/NAME:FOLDER` on the Hub.
        format: name of the format. By default it is recognised from the files in the folder.

    Raises:
        UserError: if there is no dictionary, if several formats fit, or if the files contradict
            each other.
    """
    return read_dictionary(local_path(path), format)


def load_named(run: Run, name: str) -> tuple[str, Dictionary]:
    """Load a dictionary of a run by its name, or else as `load` does; returns its place too.

    The name `recommended` stands for the one that `Run.load` takes without a name.

    Raises:
        UserError: if there is none.
    """
    require(bool(name), "dictionary is empty; give a name in the run, a folder, or null")
    if name == RECOMMENDED:
        name = run.load(None)[0]
    if name in run.dictionary_names:
        return str(run.dictionary(name)), run.load(name)[1]
    return name, load(name)


def save(dictionary: Dictionary, path: str, format: str = "saelens") -> None:
    """Write a dictionary to a folder that other tools load, in a format of `docs/formats.md`.

    `export` writes a folder for the Hub instead, with the tables and figures of a run.

    Raises:
        UserError: if the folder is not empty, or if the format cannot hold the dictionary.
    """
    folder = Path(path)
    free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    require(free, f"{path} is there already; give a new folder")
    write_dictionary(dictionary, folder, format)


def local_path(path: str | Path) -> Path:
    """Return where `path` is on this disk: it is there already, or is fetched from the Hub.

    Only the files of one dictionary are fetched, into the Hub's own cache; what is there of
    them is used offline as well.

    Raises:
        UserError: if there is nothing of that name in either place, no such revision, or the
            Hub cannot be reached or wants a login.
    """
    check_names(path)
    if Path(path).exists():
        return Path(path)
    require(
        "://" not in str(path),
        f"{path} is a web address; for a dictionary on the Hub give ORG/NAME or "
        "ORG/NAME:FOLDER",
    )
    found = _ID.fullmatch(str(path))
    if found is None:
        return Path(path)
    repository, folder = found["repository"], found["folder"] or ""
    require(
        found["before"] is None or found["revision"] is None,
        f"{path} gives two revisions; give one as ORG/NAME:FOLDER@REVISION",
    )
    revision = found["before"] or found["revision"]
    parts = Path(folder).parts
    require(
        ".." not in parts and not Path(folder).is_absolute(),
        f"{path}: {folder} leads out of the repository; give a folder inside it",
    )
    place = _fetched(repository, revision, folder)
    if _holds_one(place):
        return place
    there = _dictionaries(repository, revision, place / STAMP_FILE)
    below = [name for name in there if Path(name).is_relative_to(folder)]
    if len(below) == 1:
        place = _fetched(repository, revision, below[0])
        if _holds_one(place):
            return place
    asked = repository + (f":{folder}" if folder else "") + (f"@{revision}" if revision else "")
    some = nearest(folder, there) or (f"; it has {there[0]}" if there else "")
    raise UserError(
        f"{asked} contains no dictionary in a known format; give {repository}:FOLDER{some}"
    )


def _holds_one(place: Path) -> bool:
    # A folder of such files has those that were asked for before, which says nothing.
    fitting = (f for f in FORMATS.values() if place.is_file() or "*" not in f.files[-1])
    return any(format.recognises(place) for format in fitting)


def _wanted(folder: str) -> Iterator[str]:
    if _is_file(folder):
        yield glob.escape(os.path.normpath(folder))
        return
    if not folder:
        yield STAMP_FILE
    for format in FORMATS.values():
        for name in format.files:
            if "*" in name:
                continue
            # The Hub takes patterns, and a folder is none.
            path = glob.escape(os.path.normpath(os.path.join(folder, name)))
            yield path
            stem, suffix = os.path.splitext(path)
            if suffix == ".safetensors":
                # Large ones are there in parts.
                yield from (f"{path}.index.json", f"{stem}-*-of-*{suffix}")


def _is_file(path: str) -> bool:
    names = (name for format in FORMATS.values() for name in format.files)
    # `*.pt` would be anybody's.
    return any("*" in name[1:] and fnmatchcase(Path(path).name, name) for name in names)


def _fetched(repository: str, revision: str | None, folder: str) -> Path:
    from huggingface_hub import snapshot_download

    files = list(_wanted(folder))
    try:
        snapshot = snapshot_download(repository, revision=revision, allow_patterns=files)
        return Path(snapshot, folder)
    # Its HTTP library has its own, and not all of them are OSErrors.
    except Exception as error:
        raise UserError(_not_fetched(repository, revision, error)) from error


def _not_fetched(repository: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import errors

    login = "log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repository} is gated on the Hub; {login}, and accept its terms at "
            f"https://huggingface.co/{repository}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{repository} has no revision {revision} on the Hub; give one of its branches, "
            "tags or commits, or leave out the @"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{repository} is no folder here ({Path(repository).absolute()}), and on the Hub "
            f"there is none that everybody may see; mend the name, or {login}"
        )
    offline = " (offline)" if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0") else ""
    first = str(error).strip().split("\n")[0] or type(error).__name__
    return (
        f"{repository} is no folder here ({Path(repository).absolute()}), and could not be "
        f"downloaded from the Hub{offline}. Its message: {first}"
    )


def _dictionaries(repository: str, revision: str | None, stamp: Path) -> list[str]:
    """Return the folders and files of a repository that look like a dictionary each.

    Offline they are only known of an export of ours, by its `stamp`.
    """
    from huggingface_hub import list_repo_files

    try:
        names = list_repo_files(repository, revision=revision)
    except Exception:  # As above; what needs them does without.
        export = read_stamp(stamp)
        names = [] if export is None else [str(name) for name in export.files]
    files = [path for name in names if ".." not in (path := Path(name)).parts]
    last = (Path(name) for format in FORMATS.values() for name in format.files[-2:])
    weights = {path.name for path in last if path.suffix != ".json"}
    there = (file for file in files if file.name.removesuffix(".index.json") in weights)
    alone = {str(file) for file in files if _is_file(str(file))}
    return sorted({str(file.parent) for file in there} | alone)
