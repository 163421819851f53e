"""Commands of several verbs, `sae cache VERB ...`: their words, keys, help and refusals."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sae.base.errors import UserError, nearest, require

Show = Callable[[str], None]
"""Prints one line on standard output."""


@dataclass(frozen=True, slots=True)
class Key:
    """A `key=value` of a verb."""

    name: str
    parse: Callable[[str], Any]
    """Raises ValueError for a word of another kind."""
    kind: str
    """What `parse` takes, for people."""
    default: Any
    meaning: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Verb:
    """One of the words after a command."""

    command: str
    """`sae cache`, or whatever it stands behind."""
    name: str
    places: str
    """Its plain words; `...` at the end says that more may follow."""
    summary: str
    example: str
    run: Callable[..., int]
    """Called with `show`, the plain words and the keys; gives the exit status."""
    keys: tuple[Key, ...] = ()

    @property
    def usage(self) -> str:
        """The command with its words and keys."""
        keys = [f"{k.name}=..." if k.required else f"[{k.name}=...]" for k in self.keys]
        return " ".join([self.command, self.name, self.places, *keys])

    def takes(self, n_places: int) -> bool:
        """Whether so many plain words are right."""
        wanted = len(self.places.removesuffix(" ...").split())
        return n_places >= wanted if self.places.endswith("...") else n_places == wanted


def run_verb(about: str, verbs: dict[str, Verb], words: Sequence[str], show: Show) -> int:
    """Run a verb; its exit status.

    Args:
        about: what the verbs are about, the first line of the help behind the command.
        verbs: of one command, by name.
        words: what stands behind the command.
        show: prints a line.

    Raises:
        UserError: for an unknown verb or key, a wrong value, and what the verbs refuse.
    """
    if not words or words[0] in ("-h", "--help", "help"):
        show("\n".join(_usage(about, verbs)))
        return 0
    verb = verbs.get(words[0])
    if verb is None:
        near = nearest(words[0], verbs)
        raise UserError(f"{words[0]} is no verb{near}; there are {', '.join(verbs)}")
    if "-h" in words or "--help" in words:
        show("\n".join(_help(verb)))
        return 0
    places, values = _parsed(verb, words[1:])
    return verb.run(show, *places, **values)


def _usage(about: str, verbs: dict[str, Verb]) -> Iterator[str]:
    command = next(iter(verbs.values())).command
    yield f"{command} VERB ...   {about}"
    yield ""
    for verb in verbs.values():
        yield f"  {verb.name:<8}{verb.summary}"
        yield f"          {verb.example}"
    yield ""
    yield f"{command} VERB --help   every key of a verb"


def _help(verb: Verb) -> Iterator[str]:
    yield from (verb.usage, "", textwrap.fill(verb.summary, 92), "")
    for key in verb.keys:
        now = "null" if key.default is None else str(key.default)
        yield f"  {key.name}={'...' if key.required else now.lower()}"
        yield textwrap.indent(textwrap.fill(f"{key.meaning}; {key.kind}.", 84), "        ")
    yield f"Example: {verb.example}"


def _parsed(verb: Verb, words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Plain words, and a value for every key."""
    known = {key.name: key for key in verb.keys}
    places: list[str] = []
    values = {key.name: key.default for key in verb.keys}
    given: set[str] = set()
    for word in words:
        name, equals, value = word.partition("=")
        require(not word.startswith("-"), f"{word} is no flag; write {verb.usage}")
        # A path may hold an equals sign as well, but hardly behind a single plain word.
        if not equals or not name.isidentifier():
            places.append(word)
            continue
        if name not in known:
            near = nearest(name, known)
            raise UserError(
                f"{name} is no key of {verb.command} {verb.name}{near}; {verb.usage}"
            )
        try:
            values[name] = known[name].parse(value)
        except ValueError as error:
            raise UserError(f"{word}; {name} is {known[name].kind}") from error
        given.add(name)
    needed = {key.name for key in verb.keys if key.required}
    require(
        verb.takes(len(places)) and needed <= given,
        f"{verb.name}: write {verb.usage}, such as: {verb.example}",
    )
    return places, values


def among(choices: dict[str, Any]) -> Callable[[str], Any]:
    """A parser of one of these words, whatever their letter case."""

    def parse(word: str) -> Any:
        if word.lower() not in choices:
            raise ValueError(word)
        return choices[word.lower()]

    return parse
