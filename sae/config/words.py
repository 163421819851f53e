"""Settings in a mapping as words of a command line: from own files, and from Python's dicts.

A file `mine.yaml` with `sae: {architecture: topk, k: 8}` says what `sae=topk sae.k=8` says, and
so does `sae.train(sae={"architecture": "topk", "k": 8})`. Every word goes through the same
checks as those that somebody types.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sae.base import UserError, require
from sae.config.commands import Command
from sae.config.groups import CLASSES, FILE, groups
from sae.config.keys import parts


def words_of(command: Command, settings: Mapping[str, object], at: str = "") -> Iterator[str]:
    """Yield the words of a command line that say the same as a mapping.

    Args:
        command: the command whose keys these are.
        settings: values by key. A part of the configuration is a mapping of its own, or the
            word that stands for it on the command line; in that of a dictionary the key
            `architecture` chooses one.
        at: what comes before the keys on the command line, such as `optim.`.

    Raises:
        UserError: for a value that no command line can hold.
    """
    inside = parts(command.config_class())
    chosen = {group.path or group.name: group for group in groups(command).values()}
    for name, value in settings.items():
        path = f"{at}{name}"
        group = chosen.get(path)
        if path in inside and isinstance(value, Mapping):
            given = dict(value)
            if group and group.name in CLASSES and "architecture" in given:
                yield f"{group.key}={given.pop('architecture')}"
            yield from words_of(command, given, f"{path}.")
        elif group and isinstance(value, str | Path):
            word = str(value)
            key = group.key if group.path else group.name
            yield f"{key}={word if word in group.choices else quoted(word)}"
        elif path in inside:
            kind = type(inside[path]).__name__
            raise UserError(
                f"{path}={value!r} is no {kind}; give sae.{kind}(...), or a dict of its fields"
            )
        else:
            yield f"{path}={_literal(path, value)}"


def in_files(command: Command, words: Sequence[str]) -> list[str]:
    """Return the words with each `config=FILE` replaced by what the file says.

    What a file says comes first, wherever its word stands, so that words have the last say.

    Raises:
        UserError: for a file that is not there, or holds no settings.
    """
    files = [word for word in words if word.startswith(f"{FILE}=")]
    own = [word for word in words if word not in files]
    read = [said for word in files for said in _read(command, word.partition("=")[2])]
    return [*(said for said in read if not _is_chosen_in(command, said, own)), *own]


def _is_chosen_in(command: Command, said: str, words: Sequence[str]) -> bool:
    """Return whether a file's choice of a group is made by one of the words too."""
    group = groups(command).get(said.partition("=")[0])
    return group is not None and any(
        word.partition("=")[0] in (group.key, group.name) for word in words
    )


def _read(command: Command, name: str) -> Iterator[str]:
    path = Path(name.strip("'\"")).expanduser()
    require(path.is_file(), f"{FILE}={name}: there is no such file; give a YAML file of keys")
    try:
        found = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{FILE}={name} cannot be read as YAML: {reason}") from error
    if not isinstance(found, Mapping):
        raise UserError(f"{FILE}={name} holds no keys with values, such as `seed: 1`")
    yield from words_of(command, {str(key): value for key, value in found.items()})


def _literal(path: str, value: object) -> str:
    """Return a value as Hydra reads it back."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        return quoted(str(value))
    if isinstance(value, Mapping):
        items = (f"{key}:{_literal(path, item)}" for key, item in value.items())
        return f"{{{','.join(items)}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(_literal(path, item) for item in value)}]"
    raise UserError(
        f"{path}={value!r} is a {type(value).__name__}; give numbers, words, lists or dicts"
    )


def quoted(word: str) -> str:
    """Return a word so that Hydra and OmegaConf take all of it as one value, as it stands."""
    # Backslashes count where an interpolation follows, and only there.
    literal = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", word)
    text: str = QuotedString(literal, Quote.single).with_quotes()
    return text
