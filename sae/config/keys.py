"""What a configuration class says of itself: its keys with types, values and meanings."""

import ast
import dataclasses
import functools
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

from sae.base.settings import HasIdleKeys

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Described = DataclassInstance | type[DataclassInstance]

REQUIRED = dataclasses.MISSING
"""In place of the value of a key that has no default."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a configuration: `sae.d_sae=4608`."""

    name: str
    """With dots, from the configuration's top."""
    kind: object
    """The type of its value."""
    value: object
    """As it is now, or `REQUIRED`."""
    meaning: str
    """The docstring under the field."""


def keys(config: "Described") -> list[Key]:
    """Return every key of a configuration, or of a class with its defaults."""
    return [key for key in _walk(config, "") if not is_configuration(key.value)]


def described(config: "Described") -> list[Key]:
    """Return the fields of a configuration itself, those that are configurations too."""
    return [key for key in _walk(config, "") if "." not in key.name]


def parts(config: "Described") -> "dict[str, DataclassInstance]":
    """Return the configurations inside one by dotted path; those of a class by default."""
    return {key.name: key.value for key in _walk(config, "") if is_configuration(key.value)}


def _walk(config: "Described", at: str) -> Iterator[Key]:
    of = config if isinstance(config, type) else type(config)
    hints, meanings = typing.get_type_hints(of), _meanings(of)
    for field in dataclasses.fields(of):
        value = _default(field) if isinstance(config, type) else getattr(config, field.name)
        name = f"{at}{field.name}"
        yield Key(name, hints[field.name], value, meanings.get(field.name, ""))
        if is_configuration(value):
            yield from _walk(value, f"{name}.")


def _default(field: "dataclasses.Field[object]") -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def is_required(field: "dataclasses.Field[object]") -> bool:
    """Return whether a field has no default."""
    return field.default is field.default_factory is REQUIRED


def is_configuration(value: object) -> "TypeGuard[DataclassInstance]":
    """Return whether a value is a configuration, with keys of its own."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def idle_keys(config: "DataclassInstance") -> dict[str, str | None]:
    """Return what a configuration and those inside it say of keys without effect."""
    found: dict[str, str | None] = {}
    for path, part in {"": config, **parts(config)}.items():
        at = f"{path}." if path else ""
        if isinstance(part, HasIdleKeys):
            for name, word in part.idle_keys().items():
                found[f"{at}{name}"] = None if word is None else f"{at}{word}"
    return found


def is_below(name: str, above: "typing.Iterable[str]") -> bool:
    """Return whether a dotted name is one of some others, or inside one."""
    return any(name == other or name.startswith(f"{other}.") for other in above)


def kind_in_words(kind: object) -> str:
    """Return what a key of this type takes, for people: `a whole number or null`."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return " or ".join(map(kind_in_words, typing.get_args(kind)))
    if typing.get_origin(kind) is list:
        (inner,) = typing.get_args(kind)
        example = {int: "[1,2]", float: "[0.5,1]"}.get(inner, "[a,b]")
        return f"a list of {kind_in_words(inner).split(' ', 1)[1]}s, as {example}"
    words: dict[object, str] = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a word",
        types.NoneType: "null",
    }
    return words.get(kind, "keys of its own")


def takes_a_list(kind: object) -> bool:
    """Return whether a key of this type takes a list."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return any(map(takes_a_list, typing.get_args(kind)))
    return typing.get_origin(kind) is list


@functools.cache
def _meanings(config: type[object]) -> dict[str, str]:
    """Return the docstrings under the fields, which Python itself does not keep."""
    found = {}
    for base in filter(dataclasses.is_dataclass, reversed(config.__mro__)):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for field, doc in zip(body.body, body.body[1:], strict=False):
            match field, doc:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                    value=ast.Constant(value=text)
                ):
                    found[name] = " ".join(str(text).split())
    return found
