"""The commands as Python calls: `sae.train(run="runs/mine", seed=1)` is `sae train ...`."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sae.base.errors import UserError, nearest
from sae.base.settings import check_idle, check_numbers
from sae.config.commands import Command
from sae.config.groups import groups
from sae.config.keys import is_required, parts

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def call_of(command: Command) -> Callable[..., object]:
    """Return the Python call of a command.

    It takes the command's configuration, or the fields of one by keyword, and besides whatever
    else the command's function takes. A part that is a group on the command line may be given
    by the same word: `model="gpt2"`, `sae="topk"`. The stub `sae/__init__.pyi` has its types.
    """
    expected, name = command.config_class(), f"sae.{command.python_name}"

    def call(config: object = None, /, **settings: object) -> object:
        names = [p.name for p in _beside(command) if p.name in settings]
        more = {name: settings.pop(name) for name in names}
        if config is None:
            config = _configuration(command, settings)
        elif settings or not isinstance(config, expected):
            raise UserError(f"{name} takes one {expected.__name__}, or its fields by keyword")
        check_numbers(config)
        check_idle(config)
        return command.function()(config, **more)

    call.__module__, call.__name__, call.__qualname__ = "sae", command.python_name, name
    call.__doc__ = (
        f"{inspect.getdoc(expected)}\n\nKeywords are the fields of `{command.config}`."
    )
    parameters = list(inspect.signature(expected).parameters.values())
    parameters += _beside(command)
    # Notebooks complete keywords by it.
    vars(call)["__signature__"] = inspect.Signature(parameters)
    return call


def _beside(command: Command) -> list[inspect.Parameter]:
    """Return what the command's function takes beside its configuration, by keyword."""
    found = list(inspect.signature(command.function()).parameters.values())[1:]
    return [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in found]


def _configuration(command: Command, settings: Mapping[str, object]) -> "DataclassInstance":
    """Return the configuration with these fields."""
    expected, name = command.config_class(), f"sae.{command.python_name}"
    fields = {field.name: field for field in dataclasses.fields(expected)}
    if unknown := [word for word in settings if word not in fields]:
        raise UserError(f"{unknown[0]} is no keyword of {name}{_instead(expected, unknown[0])}")
    inside, given = parts(expected), dict(settings)
    for word, value in settings.items():
        if word in inside and isinstance(value, str):
            given[word] = _part(command, word, value)
    if missing := [f.name for f in fields.values() if is_required(f) and f.name not in given]:
        raise UserError(f"{name} needs {missing[0]}=...")
    return expected(**given)


def _instead(expected: "type[DataclassInstance]", word: str) -> str:
    """Return what the keyword could have been: that of a part, or the nearest ones."""
    for path, part in parts(expected).items():
        if word in {field.name for field in dataclasses.fields(part)} and "." not in path:
            return f"; it is one of {path}: {path}=sae.{type(part).__name__}({word}=...)"
    return nearest(word, [field.name for field in dataclasses.fields(expected)])


def _part(command: Command, word: str, value: str) -> object:
    """Return what `word=value` stands for on the command line."""
    # Only here, because Hydra takes a moment to import.
    from sae.config.compose import choice, quoted

    group = groups(command).get(word)
    if group is None:
        kind = type(parts(command.config_class())[word]).__name__
        raise UserError(f"{word}={value!r} is no {kind}; give sae.{kind}(...)")
    return choice(command, group, value if value in group.choices else quoted(value))
