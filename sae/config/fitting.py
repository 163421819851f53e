"""Values of a Python call, made to fit the types of its configuration, or refused."""

import dataclasses
import numbers
import types
import typing
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING

from sae.base import UserError
from sae.config.keys import is_configuration, kind_in_words

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def fitted(config: "DataclassInstance") -> "DataclassInstance":
    """Return a configuration whose values have the types of their fields, as `fit` makes them.

    Raises:
        UserError: for the first value that does not fit.
    """
    hints = typing.get_type_hints(type(config))
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    found = {name: fit(hints[name], value, name) for name, value in given.items()}
    changed = {name: value for name, value in found.items() if value is not given[name]}
    return dataclasses.replace(config, **changed) if changed else config


def fit(kind: object, value: object, name: str) -> object:
    """Return a value as a field of this type holds it; the same object where it is one.

    A path stands for its text, one name for a list of one, a whole number for a fractional
    one, and numpy's numbers for Python's: a call ends in the same configuration as the command
    line, and so finds the same artefacts again.

    Args:
        kind: the type of the field, `list[str]` or `int | None`.
        value: what somebody has given.
        name: the field, for the sentence.

    Raises:
        UserError: if the value does not fit.
    """
    try:
        return _fit(kind, value, name)
    except TypeError:
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            wanted = f"sae.{kind.__name__}(...) or a dict of its fields"
        else:
            wanted = kind_in_words(kind)
        raise UserError(f"{name}={value!r}: give {wanted}") from None


def _fit(kind: object, value: object, name: str) -> object:
    origin = typing.get_origin(kind)
    if isinstance(kind, types.UnionType) or origin is typing.Union:
        return _fit_any(typing.get_args(kind), value, name)
    if origin is list:
        return _fit_list(typing.get_args(kind)[0], value, name)
    if origin is dict:
        of_keys, of_values = typing.get_args(kind)
        if not isinstance(value, Mapping):
            raise TypeError
        return {
            _fit(of_keys, key, name): _fit(of_values, item, name) for key, item in value.items()
        }
    if isinstance(kind, type):
        return _fit_one(kind, value)
    return value


def _fit_any(kinds: Sequence[object], value: object, name: str) -> object:
    # The type that it has goes before those that it could be made to have.
    if any(isinstance(kind, type) and type(value) is kind for kind in kinds):
        return value
    for kind in kinds:
        try:
            return _fit(kind, value, name)
        except TypeError:
            continue
    raise TypeError


def _fit_list(kind: object, value: object, name: str) -> object:
    if isinstance(value, str | PathLike):
        value = [value]
    if not isinstance(value, list | tuple):
        raise TypeError
    found = [_fit(kind, item, name) for item in value]
    same = isinstance(value, list) and all(a is b for a, b in zip(found, value, strict=True))
    return value if same else found


def _fit_one(kind: type, value: object) -> object:
    if is_configuration(value) and isinstance(value, kind):
        return fitted(value)
    if type(value) is kind:
        return value
    if kind is str and isinstance(value, PathLike):
        return fspath(value)
    if not isinstance(value, bool):
        if kind is int and isinstance(value, numbers.Integral):
            return int(value)
        if kind is float and isinstance(value, numbers.Real):
            return float(value)
    if isinstance(value, kind) and not isinstance(value, bool):
        return value
    raise TypeError
