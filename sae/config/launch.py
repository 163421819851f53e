"""A command run by the words of a command line: once, for several values, or through Hydra."""

import importlib
import os
import sys
from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from sae.base.errors import UserError
from sae.config.commands import Command
from sae.config.compose import build, register, resolve, translated
from sae.config.grids import check_sweep, grid
from sae.config.groups import conf_folder

_HYDRAS = ("-m", "--multirun", "--cfg", "-c", "--info", "-i")
_WITH_VALUE = ("--cfg", "-c", "--info", "-i", "--package", "-p")


def launch(command: Command, words: Sequence[str]) -> object:
    """Run a command; returns what its function does, or None where there were several runs.

    Raises:
        UserError: for words that do not fit, and for what the command refuses.
    """
    if any(word in _HYDRAS for word in words):
        _by_hydra(command, words)
        return None
    if not command.sweep:
        return command.function()(build(command, words))
    configs = grid(command, words)
    if len(configs) == 1:
        return command.function()(configs[0])
    return importlib.import_module(command.sweep).run(configs)


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

    sys.argv = [f"sae {command.name}", *overrides, *flags]
    main = hydra.main(
        config_path=str(conf_folder()), config_name=command.id, version_base="1.3"
    )
    try:
        main(task)()
    except SystemExit as end:
        if isinstance(end.code, UserError):
            raise end.code from end
        raise
