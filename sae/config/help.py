"""What `sae COMMAND --help` prints."""

import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from sae.base.errors import UserError
from sae.config.commands import Command, family
from sae.config.compose import build
from sae.config.groups import groups, usage
from sae.config.keys import REQUIRED, Key, idle_keys, is_below, keys, parts

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_WIDTH = 92
_SWEEP = "To run the command once for each of several values, add -m, as in"
_GRID = """\
To train several dictionaries, give several values: sae.l1_coefficient=1,2,5 optim.lr=1e-3,3e-3.
They train side by side in this process, from one pass over the activations. With
sae=standard,topk a key applies to those architectures that have it.
With -m each of them becomes a run of its own, one after the other or, through Hydra's
launchers, on several machines."""


def command_help(command: Command, words: Sequence[str] = ()) -> str:
    """Return the help of a command: its groups with choices, and its keys with their meanings.

    Args:
        words: words of the command line. Keys are shown with the values that these words give
            them, and keys that then have no effect are left out. Words that are refused, or
            that are too few, are ignored.
    """
    config = _built(command, words) or (words and _built(command, ())) or command.config_class()
    idle = {} if isinstance(config, type) else idle_keys(config)
    lines = [usage(command), "", *_paragraphs(inspect.getdoc(config) or "")]
    lines += _group_lines(command, idle)
    lines += ["", "Keys, with their values now"]
    for key in keys(config):
        if not is_below(key.name, idle):
            lines += _key_lines(key)
    lines += _idle_lines(command, idle)
    lines += ["", _GRID if command.several else f"{_SWEEP} {keys(config)[0].name}=x,y"]
    lines += [f"To {flag.summary}: {flag.example}" for flag in family(command.name)]
    return "\n".join([*lines, f"Example: {command.example}"])


def _built(command: Command, words: Sequence[str]) -> "DataclassInstance | None":
    try:
        return build(command, words)
    except UserError:
        return None


def _paragraphs(doc: str) -> list[str]:
    found = [_filled(" ".join(part.split()), _WIDTH) for part in doc.split("\n\n")]
    return "\n\n".join(found).split("\n")


def _filled(text: str, width: int) -> str:
    """Return a text in lines that break at spaces, so that no name with a hyphen is torn."""
    return textwrap.fill(text, width, break_on_hyphens=False, break_long_words=False)


def _key_lines(key: Key) -> Iterator[str]:
    yield f"  {key.name}={_shown(key.value)}"
    yield textwrap.indent(_filled(key.meaning, _WIDTH - 8), "        ")


def _shown(value: object) -> str:
    """Return a value as it is written on a command line."""
    if value is REQUIRED:
        return "..."
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value).replace("'", "").replace("\n", "\\n")


def _group_lines(command: Command, idle: Mapping[str, str | None]) -> Iterator[str]:
    """Yield the groups that have an effect, under a headline; nothing if there are none."""
    listed = [group for group in groups(command).values() if not is_below(group.path, idle)]
    if listed:
        yield from ("", "Groups")
    for group in listed:
        more = ", or any name or path" if group.named else ""
        yield f"  {group.name}=...  {', '.join(group.choices)}{more}"


def _idle_lines(command: Command, idle: Mapping[str, str | None]) -> Iterator[str]:
    """Yield a line for each word that gives more keys an effect, under a headline."""
    inside = parts(command.config_class())
    words = dict.fromkeys(word for word in idle.values() if word is not None)
    if words:
        shown = f"sae {command.name} {next(iter(words))} --help"
        yield from ("", f"Keys that count only with others, as {shown} shows")
    for wanted in words:
        names = [name for name, word in idle.items() if word == wanted]
        listed = ", ".join(f"{name}.*" if name in inside else name for name in names)
        yield f"  {wanted:<18} {listed}"
