"""The formats of other tools: one file each, told apart by what is in a folder.

A format is a module with the names of `Format`, and of `Written` unless it is only read. What
is written holds the dictionary exactly, or is refused with the reason; `docs/formats.md` has
the table.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from sae.base import UserError, nearest, require
from sae.dictionary import Dictionary
from sae.dictionary.tensors import is_finite
from sae.exchange.formats import (
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    openai,
    openmoss,
    qwen_scope,
    saelens,
    sparsify,
)
from sae.exchange.formats.parts import kind_of

_N_LISTED = 5
# How far below a folder its dictionaries are looked for; all of a disk would take long.
_DEPTHS = ("*", "*/*", "*/*/*")


class Format(Protocol):
    """What the module of a format has."""

    NAME: str
    FILES: tuple[str, ...]
    """What a dictionary consists of, from its folder; with a star, files that are one each."""

    def recognises(self, path: Path) -> bool:
        """Whether `path` is of this format, by the names of files alone."""

    def read(self, path: Path) -> Dictionary:
        """The dictionary, or a `UserError`."""


class Written(Format, Protocol):
    """What the module of a format has that is written as well."""

    TITLE: str
    """What its own tool calls itself."""
    LOAD: str
    """How its own tool loads one from `{folder}`."""
    LOST: str
    """What does not reach its own tool."""

    def cannot_hold(self, dictionary: Dictionary) -> str | None:
        """Why the format has no place for `dictionary`, or None."""

    def write(self, dictionary: Dictionary, folder: Path) -> None:
        """Write one that it can hold."""


_WRITTEN: tuple[Written, ...] = (
    saelens,
    sparsify,
    dictionary_learning,
    openai,
    openmoss,
    gemma_scope,
    gemma_scope_2,
)
_ONLY_READ: tuple[Format, ...] = (qwen_scope,)
WRITTEN = {module.NAME: module for module in _WRITTEN}
FORMATS: dict[str, Format] = {m.NAME: m for m in (*_WRITTEN, *_ONLY_READ)}


def named_format(name: str) -> Written:
    """The format called `name`, to write.

    Raises:
        UserError: if there is none, or it is only read.
    """
    if name not in WRITTEN:
        reason = "is only read" if name in FORMATS else "is unknown"
        raise _not_among(name, WRITTEN, reason)
    return WRITTEN[name]


def readable_format(name: str) -> Format:
    """The format called `name`, to read.

    Raises:
        UserError: if there is none.
    """
    if name not in FORMATS:
        raise _not_among(name, FORMATS, "is unknown")
    return FORMATS[name]


def _not_among(name: str, formats: Iterable[str], reason: str) -> UserError:
    known = list(formats)
    return UserError(
        f"format={name} {reason}; choose one of {', '.join(known)}{nearest(name, known)}"
    )


def read_dictionary(path: str | Path, format: str | None = None) -> Dictionary:
    """A dictionary in any of the formats.

    Args:
        path: its folder; of OpenAI's and Qwen's also the file.
        format: name of the format; by default told from what is in the folder.

    Raises:
        UserError: if there is nothing, several formats fit, or the one that does refuses it.
    """
    path = Path(path)
    try:
        require(path.exists(), f"{path} is no folder; give one with a dictionary in it")
        module, place = _detected(path, FORMATS if format is None else [format])
        found = module.read(place)
    except UserError as error:
        # What a dictionary itself refuses, a k of 0 say, has no place in it.
        if str(path) in str(error):
            raise
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        # A folder in the place of a file, a name that is too long, what nobody may read.
        raise UserError(f"{path} could not be read: {error.strerror or error}") from error
    odd = [name for name, weight in found.tensors.items() if not is_finite(weight)]
    require(
        not odd,
        f"{path}: {', '.join(odd)} would hold NaN or infinity once biases and scales are "
        "folded, which float32 has no room for",
    )
    return found


def _detected(path: Path, names: Iterable[str]) -> tuple[Format, Path]:
    """Which of the formats `path` is of, and where in it the dictionary is if that is alone."""
    modules = [readable_format(name) for name in names]
    if path.is_file():
        return _reader_of_file(path, modules), path
    found = _fitting(path, modules)
    if len(found) == 1:
        return found[0], path
    if found:
        raise UserError(
            f"{path} could be of {' or '.join(module.NAME for module in found)}; say which "
            f"with format={found[0].NAME}"
        )
    inside = sorted(folder for folder in _below(path) if _fitting(folder, modules))
    if len(inside) == 1:
        return _detected(inside[0], [module.NAME for module in modules])
    if inside:
        some = ", ".join(str(folder) for folder in inside[:_N_LISTED])
        more = ", ..." if len(inside) > _N_LISTED else ""
        raise UserError(f"{path} holds {len(inside)} dictionaries; give one of {some}{more}")
    known = "that is known" if len(modules) > 1 else f"of {modules[0].NAME}"
    raise UserError(
        f"{path} holds no dictionary {known}; it would hold "
        f"{', or '.join(_files_of(module) for module in modules)}"
    )


def _below(folder: Path) -> Iterator[Path]:
    """The folders in it, but those that are hidden, such as what is not yet written."""
    for depth in _DEPTHS:
        for found in folder.glob(depth):
            hidden = any(part.startswith(".") for part in found.relative_to(folder).parts)
            if found.is_dir() and not hidden:
                yield found


def _reader_of_file(path: Path, modules: list[Format]) -> Format:
    """Which of the formats reads a file alone."""
    owners = [module.NAME for module in FORMATS.values() if path.name in _names(module)]
    require(
        not owners,
        f"{path} is a part of what {' or '.join(owners)} saves; give the folder {path.parent}",
    )
    found = _fitting(path, modules)
    alone = [module for module in modules if "*" in module.FILES[-1]]
    if len(modules) == 1 and not alone:
        raise UserError(
            f"{path} is a file, and format={modules[0].NAME} is a folder; give the folder "
            f"that holds {_files_of(modules[0])}"
        )
    if len(modules) > 1 and len(found) != 1:
        raise UserError(
            f"{path} is no file of a dictionary; give a folder, or a file of "
            f"{' or '.join(f'{module.NAME} ({module.FILES[-1]})' for module in alone)}"
        )
    return found[0] if found else alone[0]


def _names(module: Format) -> list[str]:
    return [Path(name).name for name in module.FILES]


def _fitting(path: Path, modules: Iterable[Format]) -> list[Format]:
    return [module for module in modules if module.recognises(path)]


def _files_of(module: Format) -> str:
    # The last one has the weights.
    return f"{module.FILES[-1]} ({module.NAME})"


def check_holds(module: Written, dictionary: Dictionary) -> None:
    """Refuse what a format has no place for, with the reason.

    Raises:
        UserError: if it has none.
    """
    reason = module.cannot_hold(dictionary)
    require(
        reason is None,
        f"format={module.NAME} cannot hold a {kind_of(dictionary)} of width "
        f"{dictionary.d_in} to {dictionary.d_out}: {reason}",
    )


def write_dictionary(dictionary: Dictionary, folder: Path, format: str) -> None:
    """Write `folder` in a format, appearing all at once.

    Raises:
        UserError: if the format is unknown or has no place for the dictionary.
    """
    module = named_format(format)
    check_holds(module, dictionary)
    module.write(dictionary, folder)
