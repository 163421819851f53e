"""Groups of a command: parts of its configuration that one word sets, such as `sae=topk`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sae.architectures import ARCHITECTURES, ArchitectureConfig
from sae.config.commands import Command
from sae.config.keys import parts

CLASSES: Mapping[str, Mapping[str, type[ArchitectureConfig]]] = {"sae": ARCHITECTURES}
"""Groups whose choices are classes, by name; these need no file in `conf/`."""

# Groups whose unlisted choices are names: model=EleutherAI/pythia-70m, data=./my-texts.
_NAMED = ("model", "data")
_PRESET = "preset"


@dataclass(frozen=True, slots=True)
class Group:
    """A part of a configuration that is set by one word: `sae=topk`."""

    name: str
    key: str
    """What Hydra calls it: `model@harvest.model`."""
    path: str
    """Where in the configuration it is; empty for a preset, which may be of all of it."""
    choices: tuple[str, ...]

    @property
    def named(self) -> bool:
        """Whether a choice that is not listed is a name or a path."""
        return self.name in _NAMED

    def word(self, value: str) -> str:
        """Return Hydra's word for a choice, or for several with commas between."""
        if self.named and not set(value.split(",")) <= set(self.choices):
            return f"{self.path}.name={value}"
        return f"{self.key}={value}"


def conf_folder() -> Path:
    """Return `conf/`: beside the package in a checkout, inside it when installed."""
    here = Path(__file__).resolve().parent.parent
    return next(d for d in (here / "conf", here.parent / "conf") if d.is_dir())


def groups(command: Command) -> dict[str, Group]:
    """Return the groups of a command by Hydra's key.

    They are the parts of its configuration that have a folder in `conf/` or classes to choose
    from, and its presets: the files in `conf/preset/COMMAND/`.
    """
    found = []
    for path in parts(command.config_class()):
        name = path.rpartition(".")[2]
        key = name if name == path else f"{name}@{path}"
        found.append(Group(name, key, path, _choices(name)))
    presets = f"{_PRESET}/{command.id}"
    found.append(Group(_PRESET, presets, "", _choices(presets)))
    return {group.key: group for group in found if group.choices}


def _choices(group: str) -> tuple[str, ...]:
    files = (path.stem for path in (conf_folder() / group).glob("*.yaml"))
    return tuple(sorted({*files, *CLASSES.get(group, {})}))
