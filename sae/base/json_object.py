"""Objects of JSON that were written here once, read back with their types checked."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from sae.base.errors import UserError
from sae.base.files import read_json

T = TypeVar("T")
_WORDS: dict[object, str] = {
    str: "text",
    int: "a whole number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    float: "a number",
    NoneType: "null",
}
_JSON_OF: dict[object, object] = {Mapping: dict, tuple: list}
"""What JSON has for types of Python."""


@dataclass(frozen=True, slots=True)
class JsonObject:
    """A part of a file, whose values are asked for by key and type.

    The file may come from somebody else or be damaged: a value of another type is refused in a
    sentence that names it.
    """

    where: str
    """The file, for people."""
    name: str
    """Place in the file, such as `sae_atlas.model`; empty for the whole file."""
    values: Mapping[str, object]
    cure: str
    """What to do about a wrong value."""

    def get(self, key: str, kind: type[T]) -> T:
        """Return a value that has to be there.

        Raises:
            UserError: if it is missing or of another type; true is no number.
        """
        found: T = self._checked(key, kind, self.values.get(key))
        return found

    def maybe(self, key: str, kind: type[T]) -> T | None:
        """Return a value that may be missing or null.

        Raises:
            UserError: if it is of another type.
        """
        found: T | None = self._checked(key, kind | None, self.values.get(key))
        return found

    def part(self, key: str) -> "JsonObject":
        """Return an object inside this one.

        Raises:
            UserError: if it is missing or something else.
        """
        name = f"{self.name}.{key}" if self.name else key
        return JsonObject(self.where, name, self.get(key, dict), self.cure)

    def read(self, kind: type[T], **missing: object) -> T:
        """Return the dataclass whose fields have the values of the same names.

        Args:
            missing: values of fields that older files have not got. Of the others only those
                may be missing that may be None.

        Raises:
            UserError: if a value is missing or of another type.
        """
        values = missing | {**self.values}
        hints = get_type_hints(kind).items()
        return kind(
            **{name: self._checked(name, hint, values.get(name)) for name, hint in hints}
        )

    def _checked(self, key: str, hint: Any, found: object) -> Any:
        if get_origin(hint) is Literal:
            right, words = found in get_args(hint), list(get_args(hint))
        else:
            hints = get_args(hint) if isinstance(hint, UnionType) else (hint,)
            kinds = [_JSON_OF.get(get_origin(kind), kind) for kind in hints]
            # Not isinstance(): true would be a whole number.
            right = type(found) in kinds or (float in kinds and type(found) is int)
            words = [_WORDS[kind] for kind in kinds]
            of = [get_args(hint)[0] for hint in hints if get_origin(hint) is tuple]
            if isinstance(found, list) and of:
                # All of one type: `tuple[int, ...]`.
                right = right and all(type(one) is of[0] for one in found)
                found = tuple(found)
        if not right:
            name = f"{self.name}.{key}".strip(".")
            raise UserError(
                f"{self.where}: {name}={reprlib.repr(found)}, where sae-atlas writes "
                f"{' or '.join(words)}; {self.cure}"
            )
        return found

    def __contains__(self, key: str) -> bool:
        return key in self.values


def read_object(path: Path, cure: str) -> JsonObject:
    """Read a file that holds one object of JSON.

    Args:
        cure: what to do about one that is damaged.

    Raises:
        UserError: if the file is missing or broken, or holds something else.
    """
    try:
        found = read_json(path)
    except UserError as error:
        raise UserError(f"{error}; {cure}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} does not hold a JSON object; {cure}")
    return JsonObject(str(path), "", found, cure)


def taken(found: dict[str, object], key: str, kind: type[T]) -> T | None:
    """Take a value of the right type out of `found`; one of another type stays there."""
    value = found.get(key)
    if type(value) is not kind:
        return None
    del found[key]
    return value
