"""The commands as Python calls: `sae.train(run="runs/mine", seed=1)` is `sae train ...`."""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

from sae.base.errors import UserError, nearest
from sae.base.settings import check_idle, check_numbers
from sae.config.commands import Command
from sae.config.fitting import fit, fitted
from sae.config.groups import FILE, groups
from sae.config.keys import is_configuration, is_required, parts

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def call_of(command: Command) -> Callable[..., object]:
    """Return the Python call of a command.

    It takes the command's configuration, or the fields of one by keyword (those that need no
    key on the command line need none here: `sae.analyze("runs/mine")`), and besides whatever
    else the command's function takes. A part may be given by its word on the command line,
    or by a dict of its fields: `model="gpt2"`, `sae="topk"`, `optim={"lr": 1e-3}`. A file of
    settings is `config="mine.yaml"`. The stub `sae/__init__.pyi` has the types.
    """
    expected, name = command.config_class(), f"sae.{command.python_name}"

    def call(*words: object, **settings: object) -> object:
        names = [p.name for p in _beside(command) if p.name in settings]
        more = {name: settings.pop(name) for name in names}
        if len(words) == 1 and isinstance(words[0], expected) and not settings:
            config = fitted(words[0])
        else:
            config = _configuration(command, _placed(command, words) | settings)
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


def _placed(command: Command, words: Sequence[object]) -> dict[str, object]:
    """Return values without a keyword by the keys whose places they take on a command line."""
    found: dict[str, object] = {}
    for place in command.places:
        if words and place.endswith("..."):
            found[place.removesuffix("...")], words = list(words), ()
        elif words:
            found[place], words = words[0], words[1:]
    if words or any(not isinstance(value, str | PathLike | list) for value in found.values()):
        kind = command.config_class().__name__
        raise UserError(f"sae.{command.python_name} takes one {kind}, or its fields by keyword")
    return found


def _beside(command: Command) -> list[inspect.Parameter]:
    """Return what the command's function takes beside its configuration, by keyword."""
    found = list(inspect.signature(command.function()).parameters.values())[1:]
    return [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in found]


def _configuration(command: Command, settings: Mapping[str, object]) -> "DataclassInstance":
    """Return the configuration with these fields."""
    expected, name = command.config_class(), f"sae.{command.python_name}"
    fields = {field.name: field for field in dataclasses.fields(expected)}
    composing = {FILE, *(group.name for group in groups(command).values() if not group.path)}
    settings = {w: v for w, v in settings.items() if w not in composing or v is not None}
    if unknown := [word for word in settings if word not in {*fields, *composing}]:
        raise UserError(f"{unknown[0]} is no keyword of {name}{_instead(expected, unknown[0])}")
    named = [field.name for field in fields.values() if is_required(field)]
    missing = [word for word in named if word not in settings]
    if missing and not composing & {*settings}:
        raise UserError(f"{name} needs {missing[0]}=...")
    hints, inside = typing.get_type_hints(expected), parts(expected)
    as_words = [w for w, v in settings.items() if w in inside and not is_configuration(v)]
    if not as_words and not composing & {*settings}:
        return expected(**{word: fit(hints[word], v, word) for word, v in settings.items()})
    # Only here, because Hydra takes a moment to import.
    from sae.config.compose import build
    from sae.config.words import words_of

    whole = {word: v for word, v in settings.items() if is_configuration(v)}
    rest = {
        word: v if word in inside or word in composing else fit(hints[word], v, word)
        for word, v in settings.items()
        if word not in whole
    }
    config = build(command, list(words_of(command, rest)))
    return fitted(dataclasses.replace(config, **whole))


def _instead(expected: "type[DataclassInstance]", word: str) -> str:
    """Return what the keyword could have been: that of a part, or the nearest ones."""
    for path, part in parts(expected).items():
        if word in {field.name for field in dataclasses.fields(part)} and "." not in path:
            return f"; it is one of {path}: {path}=sae.{type(part).__name__}({word}=...)"
    return nearest(word, [field.name for field in dataclasses.fields(expected)])
