"""The settings that an artefact was made with, beside it, as a file that a command takes back.

    sae train config=runs/mine/training/topk-4608-k-8.yaml

repeats that training: each key of the command stands in the file with the value that it had,
whether somebody gave it or it was the default.
"""

from pathlib import Path

import yaml

from sae.base import plain, write_text

_HEAD = """\
# What {artefact} was made with; to make it again: sae {command} config=FILE, with this file.
"""
_SUFFIXES = (".json", ".zarr")


def settings_file(artefact: Path) -> Path:
    """Return the place of an artefact's settings: `evals/ID.yaml` for `evals/ID.json`."""
    name = artefact.stem if artefact.suffix in _SUFFIXES else artefact.name
    return artefact.with_name(f"{name}.yaml")


def keep_settings(config: object, command: str, artefact: Path) -> None:
    """Write the settings of an artefact that was just made beside it.

    One that is reused keeps those that it was made with.

    Args:
        config: the command's configuration, a dataclass.
        command: the words behind `sae` that take it: `train`, `patch`.
        artefact: the file or the folder that was made.
    """
    text = yaml.dump(_settings(config), Dumper=_Plain, sort_keys=False, allow_unicode=True)
    head = _HEAD.format(artefact=artefact.name, command=command)
    write_text(settings_file(artefact), head + text)


def _settings(value: object) -> object:
    """Return a configuration as nested keys, a dictionary's with the name of its recipe."""
    found = plain(value)
    for name in found:
        inside = getattr(value, name)
        if hasattr(inside, "__dataclass_fields__"):
            found[name] = _settings(inside)
    recipe = getattr(value, "architecture", None)
    return found if recipe is None else {"architecture": recipe, **found}


class _Plain(yaml.SafeDumper):  # type: ignore[misc]
    """Writes text that reads as a number, such as 1e-3, in quotation marks."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    try:
        float(value)
    except ValueError:
        return dumper.represent_str(value)
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"')


_Plain.add_representer(str, _text)
