"""The command line: `sae STAGE [group=choice ...] [key=value ...]`, `sae cache|atlas VERB`."""

import os
import sys
from collections.abc import Sequence
from typing import Any

# Commands of several verbs, which have a module of their own among the stages.
_VERBS = ("cache", "atlas")
# What may be named without its key.
_FIRST_WORDS = {"import": "folder", "serve": "run"}

USAGE = """\
sae: from text to steering, with sparse autoencoders

  sae STAGE [group=choice ...] [key=value ...]
  sae STAGE --help        every key of a stage, with its meaning
  sae serve runs/NAME     look at what a run has found, in a browser
  sae train key=1,2       several dictionaries side by side, from one pass over the rows
  sae STAGE -m key=1,2    a run for each value instead, through Hydra's launchers
  sae import FOLDER run=...             a dictionary of another tool, from here or the Hub
  sae harvest --list-hooks model=...    every place in a model that can be read

Stages
{stages}

Beside them
  cache     look at caches, check, merge, sample, export and import: sae cache --help
  atlas     atlases for Neuronpedia and other tools, and from them: sae atlas --help

Start with: sae demo
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage; returns the exit status.

    0, or 1 where `sae cache verify` has found damage, or 2 after a sentence on standard error,
    or that of an interruption: 130, or 143 where it was asked to terminate.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    from sae.base.errors import UserError

    try:
        return _main(words)
    except UserError as error:
        label = f"sae {words[0]}" if words else "sae"
        # What another library said, and is quoted, may have several lines.
        print(f"{label}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read has seen enough, as `| head` has; nor may Python's own flush complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as interrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        # A request to terminate has a status of its own.
        return int(getattr(interrupt, "exit_status", 130))


def _main(words: list[str]) -> int:
    from sae.base.errors import UserError, nearest
    from sae.base.provenance import code_version

    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if words[0] == "--version":
        print(code_version())
        return 0
    if words[0] in _VERBS:
        return _verb(*words)
    from sae.schemas import STAGES, build, stage_help

    if words[0] not in STAGES:
        near = nearest(words[0], [*STAGES, *_VERBS])
        raise UserError(f"{words[0]} is no stage{near}; there are {', '.join(STAGES)}")
    stage = STAGES[words[0]]
    rest = _with_key(_FIRST_WORDS.get(stage.name), words[1:])
    if "-h" in rest or "--help" in rest:
        print(stage_help(stage))
    elif stage.name == "harvest" and "--list-hooks" in rest:
        words_left = [word for word in rest if word != "--list-hooks"]
        print(_hook_table(build(stage, words_left).model))
    elif any(word in ("-m", "--multirun", "--cfg", "--info") for word in rest):
        _hand_to_hydra(words[0], rest)
    elif stage.name == "train":
        _train(rest)
    elif stage.name == "serve":
        stage.module().run(build(stage, rest))
        _leave_computing()
    else:
        stage.module().run(build(stage, rest))
    return 0


def _leave_computing() -> None:
    """End now, and well, though a thread is still loading a model for nobody."""
    import threading

    from sae.serving.worker import COMPUTING

    if any(thread.name == COMPUTING for thread in threading.enumerate()):
        sys.stderr.flush()
        os._exit(0)


def _with_key(key: str | None, words: list[str]) -> list[str]:
    """The first word, if it has no key or is there as a path, becomes `key=...`."""
    if key is None or not words or words[0].startswith("-"):
        return words
    first, *others = words
    if "=" in first and not os.path.exists(first):
        return words
    quoted = first.replace("'", r"\'")
    return [f"{key}='{quoted}'", *others]


def _train(words: list[str]) -> None:
    """One dictionary, or several from the same batches where a key has several values."""
    from sae.schemas import STAGES
    from sae.schemas.grids import grid

    stage = STAGES["train"]
    configs = grid(stage, words)
    if len(configs) == 1:
        stage.module().run(configs[0])
    else:
        from sae.commands.sweep import run

        run(configs)


def _verb(command: str, *words: str) -> int:
    import importlib

    from tqdm import tqdm

    # Lines are printed while a bar is drawn.
    status: int = importlib.import_module(f"sae.commands.{command}").run(words, tqdm.write)
    return status


def _usage() -> str:
    from sae.schemas import STAGES

    stages = "\n".join(f"  {s.name:<10}{s.summary}" for s in STAGES.values())
    return USAGE.format(stages=stages)


def _hook_table(config: Any) -> str:
    """A row for each hook of the model, from its configuration alone."""
    from sae.base.errors import require
    from sae.models.hooks import list_sites, measured
    from sae.models.load import load_skeleton

    skeleton = load_skeleton(config)
    sites = measured(skeleton, list_sites(skeleton))
    require(
        bool(sites),
        f"model.name={config.name} ({type(skeleton).__name__}) is built of blocks that have no "
        "TransformerLens names here; give module paths in hook_names instead",
    )
    rows = [("hook_name", "module", "side", "width")]
    rows += [(s.hook_name, s.module, s.side, str(s.width or "")) for s in sites]
    wide = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = (
        f"{name:<{wide[0]}}  {module:<{wide[1]}}  {side:<{wide[2]}}  {width:>5}".rstrip()
        for name, module, side, width in rows
    )
    return "\n".join(lines)


def _hand_to_hydra(name: str, words: list[str]) -> None:
    """Sweeps and Hydra's own flags: its launchers, sweepers and output folders apply.

    Every run of a sweep is checked before the first one starts.
    """
    import hydra

    from sae.base.errors import UserError
    from sae.schemas import STAGES, conf_folder, named_choices, register, resolve
    from sae.schemas.grids import check_sweep

    stage = STAGES[name]
    register(stage)
    words = named_choices(stage, words)
    check_sweep(stage, words)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")

    def task(composed: Any) -> None:
        try:
            stage.module().run(resolve(composed))
        except UserError as error:
            raise _Refused(error) from error

    sys.argv = [f"sae {name}", *words]
    run = hydra.main(config_path=str(conf_folder()), config_name=name, version_base="1.3")(task)
    try:
        run()
    except _Refused as refused:
        raise refused.args[0] from refused


class _Refused(BaseException):
    """Carries a `UserError` past Hydra, which would print a line of its own before it."""


if __name__ == "__main__":
    sys.exit(main())
