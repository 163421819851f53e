"""A command run by its words: once, for several values side by side, or through Hydra."""

import copy
import functools
import itertools
import math
import os
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae.base import UserError, check_idle, duration, require
from sae.config.commands import Command
from sae.config.compose import (
    build,
    composed_of,
    in_a_sentence,
    refuse_added,
    register,
    resolve,
    searched,
    translated,
)
from sae.config.groups import conf_folder, groups
from sae.config.keys import keys
from sae.training.config import SweepConfig, TrainConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_HYDRAS = ("-m", "--multirun", "--cfg", "-c", "--info", "-i")
_WITH_VALUE = ("--cfg", "-c", "--info", "-i", "--package", "-p")

# A grid of more dictionaries than this has to be meant.
_MANY = 100
_N_SAMPLED = 20


@dataclass(frozen=True, slots=True)
class _Axis:
    """One word of the command line, written out once for each of its values."""

    key: str
    chooses: bool
    """Whether it is a choice of a group, or Hydra's own."""
    words: list[str]
    """Empty where the values cannot be counted."""


def grid(command: Command, words: Sequence[str]) -> "list[DataclassInstance]":
    """Return the configurations of trainings for words of which some have several values.

    A key that only some of the chosen architectures have applies to those.

    Raises:
        UserError: for one bad value, for two dictionaries in one folder, and for a grid of
            more than a hundred dictionaries without `sweep.yes=true`.
    """
    overrides = translated(command, words)
    refuse_added(overrides)
    axes = [_axis(command, word) for word in overrides]
    for axis, word in zip(axes, overrides, strict=True):
        require(
            bool(axis.words),
            f"{word} gives no values to go through; list them, as in 1e-3,3e-3",
        )
    if all(len(axis.words) == 1 for axis in axes):
        return [build(command, [word for axis in axes for word in axis.words])]
    blocks = _blocks(command, axes)
    n_points = sum(block.size for block in blocks)
    if n_points > _MANY:
        _check_meant(blocks, n_points)
    from sae.commands.train import refuse_twins

    configs = [block.config(index) for block in blocks for index in range(block.size)]
    refuse_twins(configs)
    return configs


def check_sweep(command: Command, overrides: Sequence[str]) -> None:
    """Build the configuration of every run of a sweep: one bad value refuses all of it.

    Flags, Hydra's own keys and what only another sweeper can count out are passed over.
    """
    from sae.commands.train import refuse_twins

    counted = [
        word
        for word in overrides
        if "=" in word and not word.lstrip("+").startswith(("-", "hydra.", "hydra/"))
    ]
    choices = [axis.words for word in counted if (axis := _axis(command, word)).words]
    refuse_twins(build(command, run) for run in itertools.product(*choices))


def _check_meant(blocks: "Sequence[_Block]", n_points: int) -> None:
    """Refuse so many dictionaries unless somebody has said that they are meant."""
    first = blocks[0].config(0)
    if not isinstance(first, TrainConfig):
        raise UserError(f"these are {n_points:,} dictionaries; give {_MANY} at most at once")
    require(
        first.sweep.yes,
        f"this grid has {n_points:,} dictionaries{_time_for(blocks, n_points)}; give "
        "sweep.yes=true to train them all",
    )


def _axis(command: Command, word: str) -> _Axis:
    with in_a_sentence(command, [word]):
        override = _parsed(word)
    key, value = override.get_key_element(), override.value()
    known = groups(command)
    chooses = override.package is not None or override.is_hydra_override() or key in known
    if not override.is_sweep_override():
        return _Axis(key, chooses, [word])
    values: Iterable[str] = ()
    if isinstance(value, Glob):
        values = value.filter(known[key].choices if key in known else ())
        require(bool(values), f"{word}: no choice of {key} is like that")
    elif override.is_discrete_sweep():
        values = override.sweep_string_iterator()
    return _Axis(key, chooses, [f"{key}={value}" for value in values])


@functools.cache
def _parsed(word: str) -> Override:
    (override,) = OverridesParser.create().parse_overrides([word])
    return override


@dataclass(frozen=True, slots=True)
class _Block:
    """Points of a grid that have their choices of groups in common."""

    command: Command
    choices: list[str]
    composed: DictConfig
    axes: list[_Axis]

    @property
    def size(self) -> int:
        return math.prod(len(axis.words) for axis in self.axes)

    def config(self, index: int) -> "DataclassInstance":
        """Return the configuration of one point; the last axis varies fastest."""
        words: list[str] = []
        for axis in reversed(self.axes):
            index, at = divmod(index, len(axis.words))
            words.insert(0, axis.words[at])
        composed = copy.deepcopy(self.composed)
        try:
            # What Hydra does with them, without composing everything anew for each point.
            for override in map(_parsed, words):
                OmegaConf.update(composed, override.key_or_group, override.value(), merge=True)
            return resolve(self.command, composed)
        except UserError:
            raise
        except (OmegaConfBaseException, ValueError):
            # Hydra refuses it as well; this says what is wrong with which word.
            return build(self.command, [*self.choices, *words])


def _blocks(command: Command, axes: Sequence[_Axis]) -> list[_Block]:
    register(command)
    found = []
    for run in itertools.product(*(axis.words for axis in axes if axis.chooses)):
        choices = list(run)
        with in_a_sentence(command, choices):
            found.append((choices, composed_of(command, choices)))
    of_keys = [axis for axis in axes if not axis.chooses]
    # Keys that are unknown everywhere stay, and are refused.
    common = [a for a in of_keys if not any(_has(composed, a.key) for _, composed in found)]
    return [
        _Block(
            command,
            choices,
            composed,
            [a for a in of_keys if a in common or _has(composed, a.key)],
        )
        for choices, composed in found
    ]


def _has(composed: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(composed, parent) if parent else composed
    return isinstance(node, DictConfig) and name in list(node)


def _time_for(blocks: Sequence[_Block], n_points: int) -> str:
    """About how long a grid takes, told from some of its points; empty if nobody can know."""
    from sae.training.turns import expected_seconds

    chance = random.Random(0)
    sample: list[TrainConfig] = []
    for part in range(_N_SAMPLED):
        # By chance within equal parts: equal steps would meet one value of the last axis alone.
        index = (part * n_points + chance.randrange(n_points)) // _N_SAMPLED
        for block in blocks:
            if index < block.size:
                config = block.config(index)
                assert isinstance(config, TrainConfig)
                sample.append(config)
                break
            index -= block.size
    seconds = expected_seconds(sample)
    if seconds is None:
        return ""
    return f", about {duration(seconds * n_points / _N_SAMPLED)} on this machine"


def launch(command: Command, words: Sequence[str]) -> object:
    """Run a command; returns what its function does, or None where there were several runs.

    Raises:
        UserError: for words that do not fit, and for what the command refuses.
    """
    if any(word in _HYDRAS for word in words):
        _by_hydra(command, words)
        return None
    configs: Sequence[object] = (
        grid(command, words) if command.several else [build(command, words)]
    )
    if len(configs) == 1:
        # In a grid a key may count for some of the dictionaries alone.
        check_idle(configs[0])
        if isinstance(configs[0], TrainConfig):
            _check_alone(configs[0])
        return command.function()(configs[0])
    return command.function(command.several)(configs)


def _check_alone(config: TrainConfig) -> None:
    """Refuse what holds for several dictionaries where one is trained."""
    for key in keys(config.sweep):
        default = getattr(SweepConfig(), key.name)
        require(
            key.value == default,
            f"sweep.{key.name}={key.value} has no effect on one dictionary; it counts for "
            "several, as in sae.l1_coefficient=1,2",
        )


def _by_hydra(command: Command, words: Sequence[str]) -> None:
    """Let Hydra run a command: its launchers, sweepers and output folders apply.

    Every run of a sweep is checked before the first one starts.
    """
    before = ["", *words]
    flags = [w for w, b in zip(words, before, strict=False) if w[:1] == "-" or b in _WITH_VALUE]
    register(command)
    overrides = translated(command, [word for word in words if word not in flags])
    check_sweep(command, overrides)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")

    def task(composed: DictConfig) -> None:
        try:
            command.function()(resolve(command, composed))
        except UserError as error:
            # Hydra prints a line of its own about an exception, and none about an exit.
            raise SystemExit(error) from error

    sys.argv = [f"sae {command.name}", *overrides, *searched(), *flags]
    main = hydra.main(
        config_path=str(conf_folder()), config_name=command.id, version_base="1.3"
    )
    try:
        main(task)()
    except SystemExit as end:
        if isinstance(end.code, UserError):
            raise end.code from end
        raise
