"""The one table of commands. A new command is its module in `sae.commands`, and its line here.

The command line, its help, the calls `sae.NAME(...)` and the public configuration classes all
come from this table. It imports no module of a command, so that `sae --help` is quick.
"""

import importlib
import keyword
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from sae.base.errors import UserError, nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True, slots=True)
class Command:
    """One thing that `sae` can be told to do, in a terminal or from Python."""

    name: str
    """The words behind `sae`: `train`, `cache merge`, `harvest --list-hooks`."""
    summary: str
    places: tuple[str, ...] = ()
    """Keys that plain words fill, in this order; a last one that ends in `...` takes a list."""
    words: str = ""
    """An example of what may stand behind the name."""
    several: str = ""
    """Function that takes the configurations of several values, all at once."""
    home: str = ""
    """Where its configuration class and its functions are, if not in `sae.commands`."""

    @property
    def id(self) -> str:
        """The name as one word: `cache_merge`, `harvest_list_hooks`."""
        return re.sub(r"\W+", "_", self.name)

    @property
    def python_name(self) -> str:
        """The name of its call: `cache_merge`, or `import_` where Python has the word."""
        return _python(self.id)

    @property
    def config(self) -> str:
        """The name of its configuration class, a frozen dataclass: `CacheMergeConfig`."""
        return f"{self.id.title().replace('_', '')}Config"

    @property
    def example(self) -> str:
        """A command line that works."""
        return f"sae {self.name} {self.words}".rstrip()

    def config_class(self) -> "type[DataclassInstance]":
        """Import the command's module and return the configuration class."""
        found: type[DataclassInstance] = getattr(self._module(), self.config)
        return found

    def function(self, name: str = "") -> Callable[..., object]:
        """Import the command's module and return the function that does the work.

        It is `run`, or of the name of the verb; it takes the configuration. Where it returns
        False, something was found to be wrong, and the command ends with status 1.
        """
        _, *verb = self.id.split("_", 1)
        own = _python(verb[0]) if verb else "run"
        found: Callable[..., object] = getattr(self._module(), name or own)
        return found

    def _module(self) -> ModuleType:
        first = re.split(r"\W", self.name)[0]
        return importlib.import_module(self.home or f"sae.commands.{_python(first)}")


def _python(word: str) -> str:
    return f"{word}_" if keyword.iskeyword(word) else word


_TABLE = (
    Command("harvest", "run text through a model and keep its activations in a cache"),
    Command(
        "harvest --list-hooks",
        "list every place in a model that can be read",
        words="model=gpt2",
    ),
    Command(
        "train",
        "train a dictionary, or a grid of them, on the activations of a cache",
        several="run_all",
    ),
    Command(
        "truth",
        "train recipes on a world whose features are known, and score what they find",
        several="run_all",
    ),
    Command(
        "eval",
        "measure on held-out text what dictionaries lose",
        places=("run",),
        words="runs/default",
    ),
    Command(
        "analyze",
        "describe every feature: how often it fires, where, and which tokens it promotes",
        places=("run",),
        words="runs/default",
    ),
    Command(
        "serve",
        "look at atlases in a browser, and try features on your own text",
        places=("run",),
        words="runs/default",
    ),
    Command(
        "serve --api",
        "answer OpenAI's requests with the model of a run, under edits",
        places=("run",),
        words="runs/default",
        home="sae.commands.serve_api",
    ),
    Command(
        "lens",
        "show what a model would predict next from its stream after each block",
        places=("text",),
        words="'The capital of France is'",
    ),
    Command(
        "steer",
        "turn features up and down while the model writes, beside baselines",
        places=("run",),
        words="runs/default",
    ),
    Command(
        "compare",
        "find which features two dictionaries share, and which only one of them has",
        places=("first", "second"),
        words="runs/mine/dictionaries/one runs/mine/dictionaries/other",
    ),
    Command(
        "find",
        "find the features that tell one text from another, beside what chance finds",
        places=("first", "second"),
        words="code.txt prose.txt run=runs/default",
    ),
    Command(
        "probe",
        "find out what can be told from activations, layer by layer: classifier probes",
        places=("tasks...",),
        words="noun-or-verb",
    ),
    Command(
        "probe edit",
        "save the direction of a probe as an edit file",
        places=("results", "out"),
        words="runs/default/probing/default verb.yaml",
    ),
    Command(
        "patch",
        "find which places of a model carry an answer: patching and attribution",
        places=("clean", "corrupt", "answer", "wrong"),
        words="preset=ioi",
    ),
    Command(
        "patch edit",
        "save a place that patching has found as an edit file",
        places=("results", "out"),
        words="runs/default/patching/ioi head.yaml site=head layer=23 head=3",
    ),
    Command(
        "patchscope",
        "ask the model what a hidden state of a text, or a feature, is",
        words="'text=The capital of France is'",
    ),
    Command(
        "export",
        "write a dictionary, its features and a card to a folder that others can load",
        places=("run",),
        words="runs/default",
    ),
    Command(
        "import",
        "take a dictionary of another tool into a run, from a folder or the Hub",
        places=("folder",),
        words="downloads/their-dictionary run=runs/theirs",
    ),
    Command(
        "demo",
        "do all of this with SmolLM2-135M-Instruct, from a 4-bit file, and write a report",
    ),
    Command(
        "cache info",
        "show what is in a cache, where it is from, and the norms of its activations",
        places=("cache",),
        words="runs/default/cache.zarr",
    ),
    Command(
        "cache verify",
        "read every chunk; the status is 1 if one is damaged or missing",
        places=("cache",),
        words="runs/default/cache.zarr",
    ),
    Command(
        "cache merge",
        "make one cache of several that are of one model",
        places=("out", "caches..."),
        words="both.zarr runs/one/cache.zarr runs/two/cache.zarr",
    ),
    Command(
        "cache sample",
        "show random sequences as text, or write them as a smaller cache",
        places=("cache",),
        words="runs/default/cache.zarr n=5 seed=0",
    ),
    Command(
        "cache export",
        "write a Hugging Face data set that SAELens trains from",
        places=("cache", "out"),
        words="runs/default/cache.zarr activations",
    ),
    Command(
        "cache import",
        "make a cache from a data set that SAELens wrote",
        places=("folder", "out"),
        words="activations runs/mine/cache.zarr model_name=gpt2",
    ),
    Command(
        "edit check",
        "say what is wrong with an edit file, and what its edits amount to in all units",
        places=("file",),
        words="edits.yaml",
    ),
    Command(
        "edit export",
        "write edits for llama.cpp, repeng, or EasySteer on vLLM",
        places=("file", "out"),
        words="edits.yaml edits.gguf",
    ),
    Command(
        "edit bake",
        "write an ordinary checkpoint with edits in its weights",
        places=("file", "out"),
        words="edits.yaml edited-model",
    ),
    Command(
        "atlas export",
        "write an atlas for Neuronpedia, SAEDashboard or circuit-tracer",
        places=("atlas", "out"),
        words="runs/default upload-here model_id=gpt2-small source=8-res-mine",
    ),
    Command(
        "atlas import",
        "make an atlas from a Neuronpedia export or SAEDashboard's JSON",
        places=("folder", "out"),
        words="gpt2-small/8-res-jb runs/mine/atlas/res-jb",
    ),
)
_OVERVIEW = """\
sae: from text to steering, with sparse autoencoders

  sae COMMAND [group=choice ...] [key=value ...]
  sae COMMAND --help        every key of a command, with its meaning; sae help COMMAND too
  sae train key=1,2         several dictionaries side by side, from one pass over a cache
  sae COMMAND -m key=1,2    a run for each value instead, through Hydra's launchers
  sae COMMAND config=FILE   keys from a YAML file of your own; words beside it have the last say
  --config-dir=FOLDER       choices and presets of your own, laid out as conf/ is
  sae completion bash       a script for the tab key, or zsh: source <(sae completion bash)

Commands
{commands}

Commands with verbs, which sae cache --help lists, and so on
{families}

Start with: sae demo
"""
COMMANDS = {command.name: command for command in _TABLE}
FAMILIES = {
    "cache": "look into activation caches, check, merge, sample, export and import them",
    "edit": "look into edit files, which say what is turned in a model",
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


def overview() -> str:
    """Return the help of `sae` itself."""
    single = [command for command in COMMANDS.values() if " " not in command.name]
    wide = max(len(command.name) for command in single) + 2
    lines = []
    for command in single:
        lines.append(f"  {command.name:<{wide}}{command.summary}")
        lines += [
            f"{'':<{wide + 2}}{flag.summary}: {flag.example}" for flag in family(command.name)
        ]
    families = [f"  {first:<{wide}}{summary}" for first, summary in FAMILIES.items()]
    return _OVERVIEW.format(commands="\n".join(lines), families="\n".join(families))


def family_overview(first: str) -> str:
    """Return the help of a word that has verbs behind it, such as `cache`."""
    lines = [f"sae {first} VERB ...   {FAMILIES[first]}", ""]
    for command in family(first):
        lines.append(f"  {command.name.split()[1]:<8}{command.summary}")
        lines.append(f"          {command.example}")
    lines += ["", f"sae {first} VERB --help   every key of a verb, with its meaning"]
    return "\n".join(lines)
