"""Dictionaries from and to folders of any format, which turns one format into another."""

from pathlib import Path

from sae.base import require
from sae.dictionary import Dictionary
from sae.exchange.formats import read_dictionary, write_dictionary
from sae.exchange.hub import local_path


def load(path: str, format: str | None = None) -> Dictionary:
    """Load a trained dictionary, ours or of any format in `docs/formats.md`.

    Args:
        path: the folder, of OpenAI's and Qwen's also the file, or `ORG/NAME:FOLDER` on the Hub.
        format: name of the format; by default told from what is in the folder.

    Raises:
        UserError: if there is no dictionary, several formats fit, or it is not what it claims.
    """
    return read_dictionary(local_path(path), format)


def save(dictionary: Dictionary, path: str, format: str = "saelens") -> None:
    """Write a dictionary as a folder that other tools load, in a format of `docs/formats.md`.

    `export` writes a folder for the Hub instead, with the tables and figures of a run.

    Raises:
        UserError: if the folder holds something, or the format has no place for the dictionary.
    """
    folder = Path(path)
    free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    require(free, f"{path} is there already; give a new folder")
    write_dictionary(dictionary, folder, format)
