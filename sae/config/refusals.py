"""What is wrong with which word of a command line, and what would be right, in one sentence."""

from collections.abc import Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf.errors import ValidationError

from sae.base.errors import nearest
from sae.config.commands import Command
from sae.config.groups import CLASSES, Group, groups
from sae.config.keys import Key, keys, kind_in_words


def sentence(command: Command, words: Sequence[str], error: Exception) -> str:
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
        cure = "quote values with special characters" if "=" in word else f"write run={word}"
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
    if at in known and isinstance(root, ValidationError):
        wanted = kind_in_words(known[at].kind)
        return f"{given}: give {wanted.replace(' [', f' {at}=[')}"
    reason = str(root).strip().split("\n")[0]
    return f"{given}: {reason}" if given else reason
