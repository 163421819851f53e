"""What no setting of any command may be, whatever its configuration says about it besides."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from sae.base.errors import UserError, require

_SEEDS = 2**63
"""How many seeds there are, from 0 on: every generator of numpy and torch takes all of them."""


@runtime_checkable
class HasIdleKeys(Protocol):
    """A configuration of which some keys have no effect while others are as they are.

    The help leaves them out, and names those that a word on the command line would wake.
    """

    def idle_keys(self) -> Mapping[str, str | None]:
        """Return the keys without effect, each with the word that would give it one, if any.

        A key stands for all below it: `{"harvest": "cache=null"}`.
        """


def check_numbers(config: object, at: str = "") -> None:
    """Refuse numbers that can mean nothing: one that is not finite, a seed beyond generators.

    Args:
        config: a configuration, with others inside it.
        at: what comes before its keys on the command line, such as `optim.`.

    Raises:
        UserError: for the first of them.
    """
    for field, value in _fields(config):
        name = f"{at}{field.name}"
        check_numbers(value, f"{name}.")
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{name}={value}; give only finite numbers")
        if field.name.endswith("seed") and isinstance(value, int):
            require(
                0 <= value < _SEEDS,
                f"{name}={value}; give a whole number of at least 0 and below 2**63",
            )


def check_idle(config: object, at: str = "") -> None:
    """Refuse a key that was set and has no effect while another one is as it is.

    Keys that nothing would wake are left to the configuration itself.

    Raises:
        UserError: for the first of them.
    """
    idle = config.idle_keys() if isinstance(config, HasIdleKeys) else {}
    for field, value in _fields(config):
        name, word, default = f"{at}{field.name}", idle.get(field.name), field.default
        check_idle(value, f"{name}.")
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if word is not None and value != default:
            changed = ", ".join(_different(name, value, default))
            raise UserError(f"{changed} has no effect here; it is only used with {at}{word}")


def _fields(config: object) -> "Iterator[tuple[dataclasses.Field[Any], Any]]":
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        for field in dataclasses.fields(config):
            yield field, getattr(config, field.name)


def _different(name: str, value: object, default: object) -> Iterator[str]:
    """Yield what differs, as words of a command line."""
    if type(value) is not type(default) or not dataclasses.is_dataclass(value):
        yield f"{name}={value}"
        return
    for field, mine in _fields(value):
        if mine != getattr(default, field.name):
            yield from _different(f"{name}.{field.name}", mine, getattr(default, field.name))
