"""From the words of a command line to a frozen configuration: all of Hydra's composing is here.

The dataclass beside each command holds schema and defaults, `conf/` holds choices of groups and
presets, and what Hydra wants to have besides is made here. Whatever does not fit is refused
with one sentence, before anything heavy is loaded. Words with several values are the business
of `grids`.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae.base.errors import UserError
from sae.config import refusals
from sae.config.commands import Command
from sae.config.groups import CLASSES, Group, conf_folder, groups
from sae.config.keys import is_configuration, parts
from sae.config.usage import usage

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

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
        raise UserError(refusals.sentence(command, words, error)) from error


def composed_of(command: Command, overrides: Sequence[str]) -> DictConfig:
    """Return the node that Hydra composes; the command has been registered."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed: DictConfig = compose(command.id, overrides=list(overrides))
    return composed


def resolve(command: Command, composed: DictConfig) -> "DataclassInstance":
    """Return the frozen configuration object of a composed node."""
    if OmegaConf.missing_keys(composed):
        raise UserError(f"write {usage(command)}, such as: {command.example}")
    return _object(composed)


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


def choice(command: Command, group: Group, word: str) -> "DataclassInstance":
    """Return the part of a configuration that `group=word` stands for.

    Raises:
        UserError: if the group has no such choice.
    """
    register(command)
    overrides = translated(command, [f"{group.key}={word}"])
    with in_a_sentence(command, overrides):
        return _object(OmegaConf.select(composed_of(command, overrides), group.path))


def translated(command: Command, words: Sequence[str]) -> list[str]:
    """Return the words as Hydra's overrides: plain ones get their keys, groups Hydra's name."""
    known = list(groups(command).values())
    found = []
    for word in _placed(command, words):
        key, equals, value = word.partition("=")
        group = next((g for g in known if equals and key in (g.key, g.name)), None)
        found.append(word if group is None else group.word(value))
    return found


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
    return not equals or not _KEY.fullmatch(name) or (awaited and Path(word).exists())


def quoted(word: str) -> str:
    """Return a word so that Hydra takes all of it as one value."""
    text: str = QuotedString(word, Quote.single).with_quotes()
    return text
