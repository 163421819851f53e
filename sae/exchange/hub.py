"""Dictionaries on the Hugging Face Hub: `ORG/NAME` or `ORG/NAME:FOLDER`.

Where files are a dictionary each, as Qwen's are, one of them is in the place of the folder.
`@REVISION` after either is a branch, a tag or a commit of the repository, where its newest
state is not what is meant.
"""

import glob
import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from sae.base.errors import UserError, nearest, require
from sae.exchange.formats import FORMATS

_ID = re.compile(
    r"(?P<repository>[\w.-]+/[\w.-]+)(?::(?P<folder>[^@]+))?(?:@(?P<revision>[^@]+))?"
)


def local_path(path: str | Path) -> Path:
    """Where `path` is on this disk: it is there already, or is fetched from the Hub.

    Only the files of one dictionary are fetched, into the Hub's own cache; what is there of
    them is used offline as well.

    Raises:
        UserError: if there is nothing of that name in either place, no such revision, or the
            Hub cannot be reached or wants a login.
    """
    found = _ID.fullmatch(str(path))
    if Path(path).exists() or found is None:
        return Path(path)
    repository, folder = found["repository"], found["folder"] or ""
    parts = Path(folder).parts
    require(
        ".." not in parts and not Path(folder).is_absolute(),
        f"{path}: {folder} leads out of the repository; give a folder in it",
    )
    snapshot = _fetched(repository, found["revision"], list(_wanted(folder)))
    place = snapshot.joinpath(*parts)
    # A folder of such files has those that were asked for before, which says nothing.
    fitting = (f for f in FORMATS.values() if place.is_file() or "*" not in f.FILES[-1])
    if not any(format.recognises(place) for format in fitting):
        raise UserError(_nothing_there(repository, found["revision"], folder))
    return place


def _wanted(folder: str) -> Iterator[str]:
    """The files of a dictionary in `folder`, in any format that has names for them."""
    if _is_file(folder):
        yield glob.escape(os.path.normpath(folder))
        return
    for format in FORMATS.values():
        for name in format.FILES:
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
    """Whether it is named as a file that is a dictionary of its own."""
    names = (name for format in FORMATS.values() for name in format.FILES)
    # `*.pt` would be anybody's.
    return any("*" in name[1:] and fnmatchcase(Path(path).name, name) for name in names)


def _fetched(repository: str, revision: str | None, files: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=files))
    except (
        Exception
    ) as error:  # Its HTTP library has its own, and not all of them are OSErrors.
        raise UserError(_not_fetched(repository, revision, error)) from error


def _not_fetched(repository: str, revision: str | None, error: Exception) -> str:
    """Why, and what to do about it."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    login = "log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, GatedRepoError):
        return (
            f"{repository} is gated on the Hub; {login}, and accept its terms at "
            f"https://huggingface.co/{repository}"
        )
    if isinstance(error, RevisionNotFoundError):
        return (
            f"{repository} has no revision {revision} on the Hub; give one of its branches, "
            "tags or commits, or leave out the @"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{repository} is no folder here ({Path(repository).absolute()}), and on the Hub "
            f"there is none that everybody may see; mend the name, or {login}"
        )
    offline = " (offline)" if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0") else ""
    first = str(error).strip().split("\n")[0] or type(error).__name__
    return (
        f"{repository} is no folder here ({Path(repository).absolute()}), and could not be had "
        f"from the Hub{offline}. It said: {first}"
    )


def _nothing_there(repository: str, revision: str | None, folder: str) -> str:
    """That there is no dictionary, and where in the repository there are some."""
    from huggingface_hub import list_repo_files

    names = {name for format in FORMATS.values() for name in format.FILES[-2:]}
    try:
        files = [Path(name) for name in list_repo_files(repository, revision=revision)]
    except Exception:  # As above; the sentence does without.
        files = []
    there = (file for file in files if file.name.removesuffix(".index.json") in names)
    alone = sorted(str(file) for file in files if _is_file(str(file)))
    folders = alone + sorted({str(file.parent) for file in there})
    asked = repository + (f":{folder}" if folder else "") + (f"@{revision}" if revision else "")
    some = nearest(folder, folders) or (f"; it has {folders[0]}" if folders else "")
    return f"{asked} holds no dictionary that is known; give {repository}:FOLDER{some}"
