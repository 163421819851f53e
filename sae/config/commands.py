"""The one table of commands. A new command is its module and its line in here.

The command line, its help, the calls `sae.NAME(...)` and the public configuration classes all
come from this table. It names modules and imports none, so that `sae --help` is quick.
"""

import importlib
import keyword
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sae.base.errors import UserError, nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True, slots=True)
class Command:
    """One thing that `sae` can be told to do, in a terminal or from Python."""

    name: str
    """The words behind `sae`: `train`, `cache merge`, `harvest --list-hooks`."""
    module: str
    config: str
    """Name of the configuration class in the module, a frozen dataclass with its defaults."""
    summary: str
    run: str = "run"
    """Name of the function in the module that takes the configuration. Where it returns False,
    something was found to be wrong, and the command ends with status 1."""
    places: tuple[str, ...] = ()
    """Keys that plain words fill, in this order; a last one that ends in `...` takes a list."""
    example: str = ""
    sweep: str = ""
    """Module whose `run` takes the configurations of several values, all at once."""

    @property
    def python_name(self) -> str:
        """The name of its call, `cache_merge`, or `import_` where Python has the word."""
        name = self.id
        return f"{name}_" if keyword.iskeyword(name) else name

    @property
    def id(self) -> str:
        """The name as one word."""
        return re.sub(r"\W+", "_", self.name)

    def config_class(self) -> "type[DataclassInstance]":
        """Import the module and return the configuration class."""
        found: type[DataclassInstance] = getattr(
            importlib.import_module(self.module), self.config
        )
        return found

    def function(self) -> Callable[..., object]:
        """Import the module and return the function that does the work."""
        found: Callable[..., object] = getattr(importlib.import_module(self.module), self.run)
        return found


_CACHE, _CACHE_EXCHANGE = "sae.commands.cache", "sae.commands.cache_exchange"
_ATLAS = "sae.commands.atlas"

COMMANDS = {
    command.name: command
    for command in (
        Command(
            "harvest",
            "sae.commands.harvest",
            "HarvestConfig",
            "run text through a model and keep its activations in a cache",
        ),
        Command(
            "harvest --list-hooks",
            "sae.commands.hooks",
            "ListHooksConfig",
            "list every place in a model that can be read",
            example="sae harvest --list-hooks model=gpt2",
        ),
        Command(
            "train",
            "sae.commands.train",
            "TrainConfig",
            "train a dictionary, or a grid of them, on the activations of a cache",
            sweep="sae.commands.sweep",
        ),
        Command(
            "eval",
            "sae.commands.eval",
            "EvalConfig",
            "measure on held-out text what dictionaries lose",
        ),
        Command(
            "analyze",
            "sae.commands.analyze",
            "AnalyzeConfig",
            "describe every feature: how often it fires, where, and which tokens it promotes",
        ),
        Command(
            "serve",
            "sae.commands.serve",
            "ServeConfig",
            "look at atlases in a browser, and try features on your own text",
            places=("run",),
            example="sae serve runs/default",
        ),
        Command(
            "steer",
            "sae.commands.steer",
            "SteerConfig",
            "turn features up and down while the model writes, beside baselines",
        ),
        Command(
            "export",
            "sae.commands.export",
            "ExportConfig",
            "write a dictionary, its features and a card to a folder that others can load",
        ),
        Command(
            "import",
            "sae.commands.import_",
            "ImportConfig",
            "take a dictionary of another tool into a run, from a folder or the Hub",
            places=("folder",),
            example="sae import downloads/their-dictionary run=runs/theirs",
        ),
        Command(
            "demo",
            "sae.commands.demo",
            "DemoConfig",
            "do all of this with a small real model, and write a report",
        ),
        Command(
            "cache info",
            _CACHE,
            "CacheInfoConfig",
            "show what is in a cache, where it is from, and the norms of its activations",
            run="info",
            places=("cache",),
            example="sae cache info runs/default/cache.zarr",
        ),
        Command(
            "cache verify",
            _CACHE,
            "CacheVerifyConfig",
            "read every chunk; the status is 1 if one is damaged or missing",
            run="verify",
            places=("cache",),
            example="sae cache verify runs/default/cache.zarr",
        ),
        Command(
            "cache merge",
            _CACHE,
            "CacheMergeConfig",
            "make one cache of several that are of one model",
            run="merge",
            places=("out", "caches..."),
            example="sae cache merge both.zarr runs/one/cache.zarr runs/two/cache.zarr",
        ),
        Command(
            "cache sample",
            _CACHE,
            "CacheSampleConfig",
            "show random sequences as text, or write them as a smaller cache",
            run="sample",
            places=("cache",),
            example="sae cache sample runs/default/cache.zarr n=5 seed=0",
        ),
        Command(
            "cache export",
            _CACHE_EXCHANGE,
            "CacheExportConfig",
            "write a Hugging Face data set that SAELens trains from",
            run="export",
            places=("cache", "out"),
            example="sae cache export runs/default/cache.zarr activations",
        ),
        Command(
            "cache import",
            _CACHE_EXCHANGE,
            "CacheImportConfig",
            "make a cache from a data set that SAELens wrote",
            run="import_",
            places=("folder", "out"),
            example="sae cache import activations runs/mine/cache.zarr model_name=gpt2",
        ),
        Command(
            "atlas export",
            _ATLAS,
            "AtlasExportConfig",
            "write an atlas for Neuronpedia, SAEDashboard or circuit-tracer",
            run="export",
            places=("atlas", "out"),
            example="sae atlas export runs/default upload-here model_id=gpt2-small "
            "source=8-res-mine",
        ),
        Command(
            "atlas import",
            _ATLAS,
            "AtlasImportConfig",
            "make an atlas from a Neuronpedia export or SAEDashboard's JSON",
            run="import_",
            places=("folder", "out"),
            example="sae atlas import gpt2-small/8-res-jb runs/mine/atlas/res-jb",
        ),
    )
}

FAMILIES = {
    "cache": "look into activation caches, check, merge, sample, export and import them",
    "atlas": "exchange atlases with Neuronpedia and other tools",
}
"""First words of commands that have a verb behind them, with what the verbs are for."""


def python_calls() -> dict[str, Command]:
    """Return the commands by the names of their Python calls; one that is a flag has none."""
    return {c.python_name: c for c in COMMANDS.values() if "--" not in c.name}


def configurations() -> dict[str, Command]:
    """Return the commands by the names of their configuration classes."""
    return {command.config: command for command in python_calls().values()}


def chosen(words: Sequence[str]) -> tuple[Command, list[str]]:
    """Return the command that some words name, and the words that are left for it.

    Raises:
        UserError: if there is no such command, or no such verb.
    """
    first, *rest = words
    for place, word in enumerate(rest):
        # A verb is the second word; a flag such as `--list-hooks` may stand anywhere.
        if f"{first} {word}" in COMMANDS and (place == 0 or word.startswith("--")):
            return COMMANDS[f"{first} {word}"], rest[:place] + rest[place + 1 :]
    if first in COMMANDS:
        return COMMANDS[first], rest
    if first in FAMILIES:
        verbs = [command.name.split()[1] for command in family(first)]
        near = nearest(rest[0], verbs)
        raise UserError(f"{rest[0]} is no verb{near}; there are {', '.join(verbs)}")
    single = [name for name in COMMANDS if " " not in name]
    near = nearest(first, [*single, *FAMILIES])
    raise UserError(f"{first} is no command{near}; there are {', '.join([*single, *FAMILIES])}")


def family(first: str) -> list[Command]:
    """Return the commands whose first word this is, and that have a verb behind it."""
    return [c for name, c in COMMANDS.items() if name.startswith(f"{first} ")]
