"""Objects of JSON that were written here once, read back with their types checked."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from sae.base.errors import UserError

T = TypeVar("T")
_WORDS: dict[type, str] = {
    str: "text",
    int: "a whole number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    float: "a number",
}


@dataclass(frozen=True, slots=True)
class JsonObject:
    """A part of a file, whose values are asked for by key and type.

    The file may come from somebody else or be damaged: a value of another type is refused in a
    sentence that names it.
    """

    where: str
    """The file, for people."""
    name: str
    """Where in the file, such as `sae_atlas.model`; empty for all of it."""
    values: Mapping[str, object]
    cure: str
    """What to do about a wrong value."""

    @classmethod
    def of(cls, where: str, name: str, found: object, cure: str) -> "JsonObject":
        """Return the object `found`.

        Raises:
            UserError: if it is something else.
        """
        if type(found) is not dict:
            raise _odd(where, name, found, _WORDS[dict], cure)
        return cls(where, name, found, cure)

    def get(self, key: str, kind: type[T]) -> T:
        """Return a value that has to be there.

        Raises:
            UserError: if it is missing or of another type; true is no number.
        """
        return self._checked(key, kind, _WORDS[kind])

    def maybe(self, key: str, kind: type[T]) -> T | None:
        """Return a value that may be missing or null.

        Raises:
            UserError: if it is of another type.
        """
        if self.values.get(key) is None:
            return None
        return self._checked(key, kind, f"{_WORDS[kind]} or null")

    def part(self, key: str) -> "JsonObject":
        """Return an object inside this one."""
        return JsonObject.of(self.where, self._path(key), self.values.get(key), self.cure)

    def _checked(self, key: str, kind: type[T], wanted: str) -> T:
        found = self.values.get(key)
        if kind is float and type(found) is int:
            return found  # type: ignore[return-value]
        # Not isinstance(): true would be a whole number.
        if type(found) is not kind:
            raise _odd(self.where, self._path(key), found, wanted, self.cure)
        return found

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def _path(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key


def taken(found: dict[str, object], key: str, kind: type[T]) -> T | None:
    """Take a value of the right type out of `found`; one of another type stays there."""
    value = found.get(key)
    if type(value) is not kind:
        return None
    del found[key]
    return value


def _odd(where: str, name: str, value: object, wanted: str, cure: str) -> UserError:
    return UserError(
        f"{where}: {name}={reprlib.repr(value)}, where sae-atlas writes {wanted}; {cure}"
    )
