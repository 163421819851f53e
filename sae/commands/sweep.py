"""Several dictionaries by one command: side by side where they read the same batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sae.base import UserError, check_writable, digest, plain, require, say
from sae.dictionary import Dictionary, load_dictionary
from sae.evaluation.evaluate import EvalConfig, evaluate
from sae.pages.compare import say_comparison, write_comparison
from sae.run import Run, missing
from sae.training.config import TrainConfig
from sae.training.loop import Diverged
from sae.training.task import open_source, tasks_of
from sae.training.train import train_together
from sae.training.turns import in_turns


def sweep(configs: Iterable[TrainConfig]) -> list[Dictionary]:
    """Train several dictionaries side by side from one stream of batches.

    Returns:
        The dictionaries in the order of their configurations.

    Raises:
        UserError: if a configuration is of something else, or two would write one folder.
    """
    require(
        isinstance(configs, Iterable),
        f"sae.sweep takes a list of TrainConfigs; this is none: {type(configs).__name__}",
    )
    wanted = list(configs)
    require(bool(wanted), "sae.sweep was given no configuration; give one TrainConfig or more")
    for config in wanted:
        found = type(config).__name__
        require(
            isinstance(config, TrainConfig),
            f"sae.sweep takes TrainConfigs; this is none: {found}",
        )
    refuse_twins(wanted)
    run(wanted)
    return [load_dictionary(config.dictionary_path) for config in wanted]


def refuse_twins(configs: Iterable[object]) -> None:
    """Refuse configurations of which two would write a dictionary to one folder."""
    targets = set()
    for config in configs:
        target = getattr(config, "dictionary_path", None)
        if target is not None and target in targets:
            raise UserError(
                f"two runs of this sweep would both write {target}; tell them apart with a "
                "name made of the swept key, such as name='x-${optim.beta1}'"
            )
        targets.add(target)


def run(configs: Sequence[TrainConfig]) -> None:
    """Train them all, in as few passes over their rows as memory allows, and compare them.

    Dictionaries that read the same batches (cache, hooks, batch size, order) train side by
    side; each is what it would be alone. If some diverge the others are finished first.

    Raises:
        UserError: before anything is trained if one does not fit in memory.
        Diverged: in the end, if one diverged.
    """
    configs = _grouped(configs)
    for config in configs:
        check_writable(config.dictionary_path)
    diverged, compared = [], []
    for _, members in _by(configs, _stream):
        source = open_source(members[0])
        plan = in_turns(missing(tasks_of(members, source), "train"), source)
        for turn in plan:
            try:
                train_together(turn, source)
            except Diverged as error:
                diverged.append(str(error))
        trained = [[task.config for task in turn] for turn in plan]
        paths = {config.dictionary_path for turn in trained for config in turn}
        compared += [*trained, [c for c in members if c.dictionary_path not in paths]]
    _evaluate(compared)
    if diverged:
        raise Diverged("; ".join(diverged))


def _grouped(configs: Sequence[TrainConfig]) -> list[TrainConfig]:
    """With a group for wandb to show them together by."""
    if len(configs) == 1:
        return list(configs)
    members = digest(sorted(config.id for config in configs))[:6]
    found = []
    for config in configs:
        group = config.logger.group or f"{Path(config.run).name}-{members}"
        found.append(replace(config, logger=replace(config.logger, group=group)))
    return found


def _stream(config: TrainConfig) -> str:
    """The same for all that read the same batches."""
    key = {
        "cache": config.cache_location,
        "hooks": [config.hook_name, config.hook_name_out],
        "batch": config.train_batch_size_tokens,
        "order": config.shuffle_seed,
        "max_norm_multiple": config.max_norm_multiple,
        "device": config.device,
    }
    if config.cache_location is None:
        key |= {"harvest": plain(config.harvest), "mix_rows": config.mix_rows}
    return digest(key)


def _evaluate(turns: Sequence[Sequence[TrainConfig]]) -> None:
    """Measure them on held-out text, those of a turn together, and compare them."""
    runs: dict[str, TrainConfig] = {}
    for turn in turns:
        there = [config for config in turn if config.dictionary_path.exists()]
        for run, members in _by(there, lambda config: config.run):
            one = members[0]
            if not one.sweep.evaluate:
                continue
            if one.cache is None:
                say(f"train: no cache to evaluate on; harvest one, then: sae eval run={run}")
                continue
            asked = EvalConfig(
                run=run,
                cache=one.cache,
                device=one.device,
                n_behaviour_tokens=one.sweep.n_behaviour_tokens,
            )
            evaluate(asked, [config.id for config in members])
            runs[run] = one
    for run, one in runs.items():
        say_comparison(write_comparison(Run.at(run), one.sweep.max_l0))


def _by(
    configs: Sequence[TrainConfig], key: Callable[[TrainConfig], str]
) -> Iterator[tuple[str, list[TrainConfig]]]:
    """The configurations in groups of the same key, in their order."""
    found: dict[str, list[TrainConfig]] = {}
    for config in configs:
        found.setdefault(key(config), []).append(config)
    yield from found.items()
