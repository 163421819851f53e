"""The formats of other tools: one file each, told apart by what is in a folder.

What is written holds the dictionary exactly, or is refused with the reason; `docs/formats.md`
has the table.
"""

from collections.abc import Collection, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import TypeVar

from sae.base import UserError, nearest, require
from sae.dictionary import Dictionary
from sae.exchange.formats.dictionary_learning import DictionaryLearning
from sae.exchange.formats.gemma_scope import GemmaScope, GemmaScope2
from sae.exchange.formats.openai import OpenAI
from sae.exchange.formats.openmoss import OpenMOSS
from sae.exchange.formats.parts import Format, Written, check_finite
from sae.exchange.formats.qwen_scope import QwenScope
from sae.exchange.formats.saelens import SAELens
from sae.exchange.formats.sparsify import Sparsify

_WRITTEN: tuple[Written, ...] = (
    SAELens(),
    Sparsify(),
    DictionaryLearning(),
    OpenAI(),
    OpenMOSS(),
    GemmaScope(),
    GemmaScope2(),
)
WRITTEN = {format.name: format for format in _WRITTEN}
FORMATS: dict[str, Format] = {**WRITTEN, QwenScope.name: QwenScope()}
_N_LISTED = 5
# How far below a folder its dictionaries are looked for; all of a disk would take long.
_DEPTHS = ("*", "*/*", "*/*/*")
_F = TypeVar("_F", bound=Format)


def named_format(name: str) -> Written:
    """Return the format called `name`, to write.

    Raises:
        UserError: if there is none, or it is only read.
    """
    return _among(WRITTEN, name)


def readable_format(name: str) -> Format:
    """Return the format called `name`, to read.

    Raises:
        UserError: if there is none.
    """
    return _among(FORMATS, name)


def _among(formats: Mapping[str, _F], name: str) -> _F:
    reason = "is only read" if name in FORMATS else "is unknown"
    require(
        name in formats,
        f"format={name} {reason}; choose one of {', '.join(formats)}{nearest(name, formats)}",
    )
    return formats[name]


def read_dictionary(path: str | Path, format: str | None = None) -> Dictionary:
    """Return a dictionary in any of the formats.

    Args:
        path: its folder; of OpenAI's and Qwen's also the file.
        format: name of the format. By default it is recognised from the files in the folder.

    Raises:
        UserError: if there is nothing, several formats fit, or the one that does refuses it.
    """
    path = Path(path)
    try:
        require(path.exists(), f"{path} is not a folder; give one with a dictionary in it")
        readers = FORMATS.values() if format is None else [readable_format(format)]
        reader, place = _detected(path, readers)
        found = reader.read(place)
    except UserError as error:
        # What a dictionary itself refuses, a k of 0 say, has no place in it.
        if str(path) in str(error):
            raise
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        # A folder in the place of a file, a name that is too long, what nobody may read.
        raise UserError(f"{path} could not be read: {error.strerror or error}") from error
    check_finite(found, path)
    return found


def _detected(path: Path, formats: Collection[Format]) -> tuple[Format, Path]:
    """Which of the formats `path` is of, and where in it the dictionary is if that is alone."""
    if path.is_file():
        return _reader_of_file(path, formats), path
    found = _fitting(path, formats)
    if len(found) == 1:
        return found[0], path
    if found:
        raise UserError(
            f"{path} could be a dictionary of {_names(found)}; say which with "
            f"format={found[0].name}"
        )
    # Hidden folders are such as what is not yet written.
    inside = sorted(
        folder
        for folder in chain.from_iterable(map(path.glob, _DEPTHS))
        if folder.is_dir()
        and not any(part.startswith(".") for part in folder.relative_to(path).parts)
        and _fitting(folder, formats)
    )
    if len(inside) == 1:
        return _detected(inside[0], formats)
    if inside:
        some = ", ".join(map(str, inside[:_N_LISTED])) + ", ..." * (len(inside) > _N_LISTED)
        raise UserError(f"{path} holds {len(inside)} dictionaries; give one of {some}")
    known = "that is known" if len(formats) > 1 else f"of {_names(formats)}"
    raise UserError(
        f"{path} holds no dictionary {known}; it would hold "
        f"{', or '.join(map(_weights_of, formats))}"
    )


def _reader_of_file(path: Path, formats: Collection[Format]) -> Format:
    owners = [f for f in FORMATS.values() if path.name in (Path(name).name for name in f.files)]
    require(
        not owners,
        f"{path} is only a part of what {_names(owners)} saves; give the folder {path.parent}",
    )
    found = _fitting(path, formats)
    alone = [format for format in formats if "*" in format.files[-1]]
    if len(formats) == 1 and not alone:
        raise UserError(
            f"{path} is a file, but a dictionary in format={_names(formats)} is a folder; "
            f"give the folder that holds {', '.join(map(_weights_of, formats))}"
        )
    if len(formats) > 1 and len(found) != 1:
        raise UserError(
            f"{path} is not the file of a dictionary; give a folder, or a file of "
            f"{' or '.join(f'{format.name} ({format.files[-1]})' for format in alone)}"
        )
    return found[0] if found else alone[0]


def _names(formats: Iterable[Format]) -> str:
    return " or ".join(format.name for format in formats)


def _fitting(path: Path, formats: Iterable[Format]) -> list[Format]:
    return [format for format in formats if format.recognises(path)]


def _weights_of(format: Format) -> str:
    return f"{format.files[-1]} ({format.name})"


def check_holds(format: Written, dictionary: Dictionary) -> None:
    """Refuse what a format has no place for, with the reason.

    Raises:
        UserError: if it has none.
    """
    reason = format.cannot_hold(dictionary)
    skip = "" if dictionary.W_skip is None else "skip "
    kind = f"{skip}transcoder" if dictionary.is_transcoder else "autoencoder"
    require(
        reason is None,
        f"format={format.name} cannot hold a {dictionary.architecture} {kind} of width "
        f"{dictionary.d_in} to {dictionary.d_out}: {reason}",
    )


def write_dictionary(dictionary: Dictionary, folder: Path, format: str) -> None:
    """Write `folder` in a format, appearing all at once.

    Raises:
        UserError: if the format is unknown or has no place for the dictionary.
    """
    writer = named_format(format)
    check_holds(writer, dictionary)
    writer.write(dictionary, folder)
