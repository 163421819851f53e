"""What may stand behind a command: keys, and groups of keys that one word sets."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from sae.architectures import ARCHITECTURES, ArchitectureConfig
from sae.base import require
from sae.config.commands import Command
from sae.config.keys import is_required, parts

CLASSES: Mapping[str, Mapping[str, type[ArchitectureConfig]]] = {"sae": ARCHITECTURES}
"""Groups whose choices are classes, by name; these need no file in `conf/`."""

# Groups whose unlisted choices are names: model=EleutherAI/pythia-70m, data=./my-texts.
_NAMED = ("model", "data")
_PRESET = "preset"
FILE = "config"
"""The word that names a file of settings: `config=mine.yaml`."""
# Up to so many keys are named one by one in a line of usage.
_FEW = 6


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


OWN_FOLDER = "SAE_CONFIG_DIR"
"""Variable of the environment that names a folder of own choices and presets."""


def own_folders() -> list[Path]:
    """Return the folder of own choices and presets, if somebody has named one.

    It is laid out as `conf/` is: `model/mine.yaml`, `preset/train/mine.yaml`. `--config-dir`
    sets the variable for one command.

    Raises:
        UserError: if it is not there.
    """
    named = os.environ.get(OWN_FOLDER)
    if not named:
        return []
    folder = Path(named).expanduser().resolve()
    require(
        folder.is_dir(),
        f"--config-dir={named}: there is no such folder; give one with choices such as "
        "model/mine.yaml or preset/train/mine.yaml",
    )
    return [folder]


def groups(command: Command) -> dict[str, Group]:
    """Return the groups of a command by Hydra's key.

    They are the parts of its configuration that have a folder in `conf/` or classes to choose
    from, and its presets: the files in `conf/preset/COMMAND/`, and those of one's own.
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
    folders = [conf_folder(), *own_folders()]
    files = (path.stem for folder in folders for path in (folder / group).glob("*.yaml"))
    return tuple(sorted({*files, *CLASSES.get(group, {})}))


def usage(command: Command) -> str:
    """Return the line that shows a command's words: `sae cache sample CACHE [n=...]`."""
    config = command.config_class()
    required = {f.name for f in fields(config) if is_required(f)}
    taken = {place.removesuffix("...") for place in command.places}
    left = [f.name for f in fields(config) if f.name not in taken]
    optional = [name for name in left if name not in required]
    words = [f"sae {command.name}"]
    words += [
        place_word(place, place.removesuffix("...") in required) for place in command.places
    ]
    words += [f"{name}=..." for name in left if name in required]
    if groups(command):
        words += ["[group=choice ...]"]
    if parts(config) or len(optional) > _FEW:
        words += ["[key=value ...]"]
    else:
        words += [f"[{name}=...]" for name in optional]
    return " ".join(words)


def place_word(place: str, required: bool) -> str:
    """Return how a plain word is shown: `CACHE`, `[RUN]`, `CACHE CACHE ...`."""
    if place.endswith("..."):
        one = place.removesuffix("...").removesuffix("s").upper()
        return f"{one} {one} ..."
    return place.upper() if required else f"[{place.upper()}]"
