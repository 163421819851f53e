"""From the words of a command line to a frozen configuration: all of Hydra's composing is here.

The dataclass beside each command holds schema and defaults, `conf/` holds choices of groups and
presets, and what Hydra wants to have besides is made here. Whatever does not fit is refused
with one sentence, before anything heavy is loaded. Words with several values are the business
of `grids`.
"""

import dataclasses
import inspect
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigTypeError, OmegaConfBaseException, ValidationError

from sae.base import UserError, check_numbers, nearest, say
from sae.config.commands import Command
from sae.config.groups import CLASSES, Group, conf_folder, groups, own_folders, usage
from sae.config.keys import (
    Key,
    is_configuration,
    keys,
    kind_in_words,
    parts,
    takes_a_list,
)
from sae.config.words import in_files, quoted

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# One name, and neither a list nor several values to go through.
_ONE_NAME = re.compile(r"(?!null$)[\w./:@-]+|'[^']*'|\"[^\"]*\"")
# What stands before the equals sign of `key=value`; anything else is a plain word.
_KEY = re.compile(r"[+~]{0,2}(hydra/[\w./]+|[A-Za-z_][\w.]*)(@[\w.]+)?")


def register(command: Command) -> None:
    """Make the command's defaults, and the classes to choose from, known to Hydra."""
    store = ConfigStore.instance()
    for kind, classes in CLASSES.items():
        for name, config in classes.items():
            store.store(group=kind, name=name, node=_thawed(config))
    schema = f"{command.id}_schema"
    store.store(name=schema, node=_thawed(command.config_class()))
    inside = parts(command.config_class())
    node = OmegaConf.create()
    before: list[object] = [schema]
    after: list[object] = []
    for group in groups(command).values():
        if not group.path:
            # A preset says the last word.
            after.append({group.key: None})
        elif group.name in CLASSES:
            default = inside[group.path]
            name = next(n for n, c in CLASSES[group.name].items() if c is type(default))
            before.append({group.key: name})
            # A choice brings the defaults of its class; this command's may be others.
            OmegaConf.update(node, group.path, _changed(default))
        else:
            before.append({group.key: None})
    node["defaults"] = [*before, "_self_", *after]
    if "run" in {field.name for field in dataclasses.fields(command.config_class())}:
        sweep = {"dir": "${run}/sweep", "subdir": "${hydra.job.num}"}
        node["hydra"] = {"run": {"dir": "${run}"}, "sweep": sweep}
    store.store(name=command.id, node=node)


def _changed(config: "DataclassInstance") -> dict[str, object]:
    """Return the values that differ from the defaults of their class."""
    usual = type(config)()
    names = [field.name for field in dataclasses.fields(config)]
    return {n: getattr(config, n) for n in names if getattr(config, n) != getattr(usual, n)}


def _thawed(config: "type[DataclassInstance]") -> DictConfig:
    """Return the structured node of a frozen dataclass, open for merging.

    OmegaConf marks nodes of frozen dataclasses read-only, and then cannot merge choices into
    them; they are frozen again when the finished object is built. Nor can it put one subclass
    in the place of another, so where a choice of class is to be made the default is left out.
    """
    root: DictConfig = OmegaConf.structured(config)
    pending = [root]
    while pending:
        node = pending.pop()
        OmegaConf.set_readonly(node, None)
        for key in node:
            child = node._get_node(key)
            if not isinstance(child, DictConfig) or child._is_none():
                continue
            if child._metadata.object_type is dict:
                # Its keys are whatever somebody gives.
                OmegaConf.set_struct(child, False)
                continue
            if inspect.isabstract(child._metadata.ref_type):
                OmegaConf.set_readonly(child, None)
                node[key] = MISSING
            else:
                pending.append(child)
    return root


def build(command: Command, words: Sequence[str]) -> "DataclassInstance":
    """Return the command's configuration for these words of a command line.

    Raises:
        UserError: for an unknown key or choice, a wrong type or an impossible value.
    """
    register(command)
    overrides = translated(command, words)
    refuse_added(overrides)
    with in_a_sentence(command, overrides):
        return resolve(command, composed_of(command, overrides))


def refuse_added(words: Iterable[str]) -> None:
    """Refuse words that would add a key or remove one."""
    for word in words:
        if word.startswith(("+", "~")):
            raise UserError(f"{word}: keys are set, not added or removed; write key=value")


@contextmanager
def in_a_sentence(command: Command, words: Sequence[str]) -> Iterator[None]:
    """Turn what Hydra and OmegaConf say about these words into one sentence."""
    try:
        yield
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        # Hydra itself raises plain ValueErrors, for `sae=null` as an example.
        raise UserError(_sentence(command, words, error)) from error


def composed_of(command: Command, overrides: Sequence[str]) -> DictConfig:
    """Return the node that Hydra composes; the command has been registered."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed: DictConfig = compose(command.id, overrides=[*overrides, *searched()])
    return composed


def searched() -> list[str]:
    """Return Hydra's word for the folder of own choices, if there is one."""
    folders = ",".join(quoted(f"file://{folder}") for folder in own_folders())
    return [f"hydra.searchpath=[{folders}]"] if folders else []


def resolve(command: Command, composed: DictConfig) -> "DataclassInstance":
    """Return the frozen configuration object of a composed node."""
    if OmegaConf.missing_keys(composed):
        raise UserError(f"write {usage(command)}, such as: {command.example}")
    found = _object(composed)
    check_numbers(found)
    return found


def _object(node: DictConfig) -> "DataclassInstance":
    try:
        found = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        # OmegaConf wraps what a dataclass raises about its own values.
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from error
        raise
    assert is_configuration(found)
    return found


def translated(command: Command, words: Sequence[str]) -> list[str]:
    """Return the words as Hydra's overrides.

    Plain ones get their keys, groups get Hydra's name, a file of settings becomes what it says,
    and one name where a list is meant becomes a list of one.
    """
    known = list(groups(command).values())
    lists = {key.name for key in keys(command.config_class()) if takes_a_list(key.kind)}
    found = []
    for word in _placed(command, in_files(command, words)):
        key, equals, value = word.partition("=")
        group = next((g for g in known if equals and key in (g.key, g.name)), None)
        if equals and _names_a_place(plain := value.strip("'\"")):
            value = quoted(plain)
        if key in lists and _ONE_NAME.fullmatch(value):
            value = f"[{value}]"
        found.append(f"{key}{equals}{value}" if group is None else group.word(value))
    return _with_implied(command, found)


def _with_implied(command: Command, words: Sequence[str]) -> list[str]:
    """Return the words, with the class that they imply where they choose none.

    `sae.k=8` fits no dictionary with an L1 penalty, which is the usual one; of those whose keys
    it does fit the first is taken, and that is said.
    """
    inside = parts(command.config_class())
    found = list(words)
    for group in groups(command).values():
        classes = CLASSES.get(group.name, {})
        if not classes or any(word.startswith(f"{group.key}=") for word in words):
            continue
        start = f"{group.path}."
        asked = [w.partition("=")[0].removeprefix(start) for w in words if w.startswith(start)]
        usual = {field.name for field in dataclasses.fields(inside[group.path])}
        other = [key for key in asked if key not in usual]
        fitting = [
            name
            for name, kind in classes.items()
            if {*asked} <= {field.name for field in dataclasses.fields(kind)}
        ]
        if other and fitting:
            more = f"; {', '.join(fitting[1:])} have it too" if fitting[1:] else ""
            say(f"{start}{other[0]} is given, so {group.name}={fitting[0]} is chosen{more}")
            found.insert(0, f"{group.key}={fitting[0]}")
    return found


def _names_a_place(value: str) -> bool:
    """Return whether what looks like an interpolation is in the name of a folder or file."""
    before, mark, after = value.partition("${")
    # Up to the end of that name: what comes behind may be a pattern, or not be there yet.
    named = os.path.expanduser(f"{before}{mark}{after.partition('/')[0]}")
    return bool(mark) and os.path.lexists(named)


def _placed(command: Command, words: Sequence[str]) -> Iterator[str]:
    """Yield the words, each plain one as `key=word` for the key whose place it takes."""
    waiting = list(command.places)
    several: list[str] = []
    for word in words:
        if word.startswith("-"):
            raise UserError(f"{word} is no flag here; write {usage(command)}")
        if not command.places or not _is_plain(word, bool(waiting)):
            yield word
        elif not waiting:
            raise UserError(f"{word} is one word too many; write {usage(command)}")
        elif waiting[0].endswith("..."):
            several.append(quoted(word))
        else:
            yield f"{waiting.pop(0)}={quoted(word)}"
    if several:
        yield f"{waiting[0].removesuffix('...')}=[{','.join(several)}]"


def _is_plain(word: str, awaited: bool) -> bool:
    name, equals, _ = word.partition("=")
    # A path may hold an equals sign as well.
    return not equals or not _KEY.fullmatch(name) or (awaited and os.path.exists(word))


def _sentence(command: Command, words: Sequence[str], error: Exception) -> str:
    """Return one sentence for what Hydra or OmegaConf has found wrong.

    Args:
        words: Hydra's overrides.
        error: what it has raised.
    """
    known = _known_keys(command, words)
    for word in words:
        if wrong := _wrong_word(command, known, word):
            return wrong
    return _wrong_value(known, words, error)


def _known_keys(command: Command, words: Sequence[str]) -> dict[str, Key]:
    """Return the keys of the command, and those of the classes that the words choose."""
    known = {key.name: key for key in keys(command.config_class())}
    listed = groups(command)
    for word in words:
        name, _, value = word.partition("=")
        group = listed.get(name)
        chosen = CLASSES.get(group.name, {}).get(value) if group else None
        if group and chosen:
            known |= {f"{group.path}.{key.name}": key for key in keys(chosen)}
    return known


def _wrong_word(command: Command, known: Mapping[str, Key], word: str) -> str | None:
    """Return what is wrong with a word by itself, if anything."""
    try:
        (override,) = OverridesParser.create().parse_overrides([word])
    except HydraException:
        name, equals, value = word.partition("=")
        # The shell takes one pair of quotation marks away, and Hydra the other.
        quoting = f"quote values with special characters, twice: \"{name}='{value}'\""
        cure = quoting if equals else f"write run={word}"
        return f"{word}: not of the form key=value; {cure}"
    key = override.get_key_element().lstrip("+~")
    listed = groups(command)
    if not key:
        return f"{word}: not of the form key=value; the key is missing"
    if key in listed:
        return _wrong_choice(listed[key], word, override)
    if key not in known and not any(name.startswith(f"{key}.") for name in known):
        shown = [*known, *(group.name for group in listed.values())]
        return f"{key} is no key of sae {command.name}{nearest(key, shown)}"
    if override.is_sweep_override():
        several = f"a list as {key}=[{word.partition('=')[2]}]"
        return f"{word}: give one value, or {several}, or add -m for a run of each"
    return None


def _wrong_choice(group: Group, word: str, override: Override) -> str | None:
    if override.is_sweep_override():
        return f"{word}: give one value, or add -m for a run of each"
    value = str(override.value())
    if value in group.choices:
        return None
    near = nearest(value, group.choices)
    return f"{group.key}={value} is unknown; choose one of {', '.join(group.choices)}{near}"


def _wrong_value(known: Mapping[str, Key], words: Sequence[str], error: Exception) -> str:
    """Return which value is wrong by what OmegaConf says, and what would be right."""
    root = error.__cause__ or error
    # The error names an element of a list, `features[1]`; the word names the list.
    at = str(getattr(root, "full_key", None) or "").partition("[")[0]
    given = next((w for w in reversed(words) if at and w.startswith(f"{at}=")), at)
    # A dict in place of a list, say, is a type error of the merge.
    if at in known and isinstance(root, ValidationError | ConfigTypeError | TypeError):
        wanted = kind_in_words(known[at].kind)
        return f"{given}: give {wanted.replace(' [', f' {at}=[')}"
    reason = str(root).strip().split("\n")[0]
    return f"{given}: {reason}" if given else reason
