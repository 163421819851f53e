"""Write what is told of the commands without importing them: `sae/__init__.pyi` and a table.

    python scripts/stubs.py

From the stub editors and type checkers know the names in `sae`. From the table,
`sae/config/completion.json`, the tab key knows the keys of commands. The commands come from
their own table, the keywords and keys from the configuration classes.
"""

import dataclasses
import inspect
import json
import re
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import sae
from sae.config.commands import COMMANDS, Command, python_calls
from sae.config.completion import TABLE
from sae.config.groups import CLASSES, groups
from sae.config.keys import Key, is_below, keys, kind_in_words, parts

PATH = Path(sae.__file__).with_suffix(".pyi")
_LONGEST = 60
"""Characters of a default that is shown."""
HEAD = '''"""What `sae` offers. Written by scripts/stubs.py; a test compares the two."""
'''


class Names:
    """Types as they are written, with the imports that they need."""

    def __init__(self) -> None:
        self.imports = {("typing", "overload")}

    def written(self, kind: object) -> str:
        """Return the source of a type."""
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if kind is None or kind is types.NoneType:
            return "None"
        if isinstance(kind, types.UnionType) or origin is typing.Union:
            return " | ".join(map(self.written, arguments))
        if origin is not None:
            return f"{self.written(origin)}[{', '.join(map(self.written, arguments))}]"
        assert isinstance(kind, type)
        name, module = kind.__name__, kind.__module__
        if module != "builtins":
            self.imports.add((module, name))
        return name


def stub() -> str:
    """Return the text of the stub."""
    names = Names()
    calls = [line for command in python_calls().values() for line in _call(names, command)]
    others = [name for name in dir(sae) if name not in python_calls()]
    public = {(getattr(sae, name).__module__, name) for name in others}
    lines = []
    for module, name in sorted(names.imports | public):
        again = f" as {name}" if (module, name) in public else ""
        lines.append(f"from {module} import {name}{again}")
    return _formatted("\n".join([HEAD, *lines, "", "__version__: str", "", *calls]))


def _formatted(text: str) -> str:
    """Return a stub with its imports in order and its lines as ruff has them."""
    ruff = [sys.executable, "-m", "ruff"]
    for words in (["check", "--fix-only", "--quiet", "--select=I"], ["format", "--quiet"]):
        command = [*ruff, *words, "--stdin-filename", str(PATH), "-"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
        text = done.stdout
    return text


def _call(names: Names, command: Command) -> Iterator[str]:
    """Yield the lines of a command's two overloads: a configuration, or its fields."""
    config, function = command.config_class(), command.function()
    said = inspect.getdoc(config)
    assert said is not None
    hints = typing.get_type_hints(function)
    beside = [
        f"{p.name}: {names.written(hints[p.name])} = {p.default!r}"
        for p in list(inspect.signature(function).parameters.values())[1:]
    ]
    returned = names.written(hints["return"])
    first = [f"config: {command.config}", "/", *(["*", *beside] if beside else [])]
    for parameters in (first, [*_fields(names, command), *beside]):
        yield "@overload"
        yield f"def {command.python_name}("
        yield from (f"    {parameter}," for parameter in parameters)
        yield f") -> {returned}:"
        doc = " ".join(said.split("\n\n")[0].split())
        yield f'    """{doc}"""'
        yield ""


def _fields(names: Names, command: Command) -> Iterator[str]:
    """Yield the fields as parameters, first those that need no keyword."""
    config = command.config_class()
    hints, words, inside = typing.get_type_hints(config), groups(command), parts(config)
    names.imports.add(("collections.abc", "Mapping"))
    fields = {field.name: field for field in dataclasses.fields(config)}
    # What takes several words on a command line takes a list here.
    first = [place for place in command.places if place in fields]
    for name in [*first, "*", *(name for name in fields if name not in first)]:
        if name == "*":
            yield name
            continue
        kind = names.written(hints[name])
        # A part may be given by the word of the command line, or by a dict of its fields.
        kind += " | str" if name in words else ""
        kind += " | Mapping[str, object]" if name in inside else ""
        # One name stands for a list of one.
        kind = re.sub(r"^list\[str\]", "list[str] | str", kind)
        yield f"{name}: {kind}{_default(fields[name])}"
    yield "config: str | None = None"
    if any(not group.path for group in words.values()):
        yield "preset: str | None = None"


def _default(field: "dataclasses.Field[object]") -> str:
    if field.default_factory is not dataclasses.MISSING:
        return " = ..."
    if field.default is dataclasses.MISSING:
        return ""
    written = f" = {field.default!r}"
    # A whole prompt, say, is no reading for a tooltip.
    return written if len(written) <= _LONGEST else " = ..."


def table() -> str:
    """Return the text of the table of keys that the tab key completes from, as JSON."""
    classes = {
        group: {name: _taken(keys(config)) for name, config in choices.items()}
        for group, choices in CLASSES.items()
    }
    commands = {}
    for command in COMMANDS.values():
        listed = groups(command).values()
        chosen = [group.path for group in listed if group.name in CLASSES]
        commands[command.id] = {
            "keys": {
                name: takes
                for name, takes in _taken(keys(command.config_class())).items()
                if not is_below(name, chosen)
            },
            "groups": {
                group.name: {
                    "path": group.path,
                    "choices": group.choices,
                    "named": group.named,
                }
                for group in listed
            },
        }
    text = json.dumps({"classes": classes, "commands": commands}, indent=1) + "\n"
    # A key a line, so that a change of one is a line too.
    return re.sub(r"\[[^][{}]*]", lambda listed: re.sub(r"\s+", " ", listed[0]), text)


def _taken(listed: list[Key]) -> dict[str, list[str]]:
    """Return keys with the words that each takes; "" is any word, and numbers are none."""
    found: dict[str, list[str]] = {}
    for key in listed:
        said = kind_in_words(key.kind).split()
        found[key.name] = [word for word in ("true", "false", "null") if word in said]
        found[key.name] += [""] * bool({"word", "words,"} & {*said})
    return found


if __name__ == "__main__":
    PATH.write_text(stub(), encoding="utf-8")
    TABLE.write_text(table(), encoding="utf-8")
