"""`sae train`: rows of activations to a dictionary, or to several side by side."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from sae.base import UserError, check_numbers, check_writable, digest, plain, require, say
from sae.cache.layout import open_cache
from sae.dictionary import Dictionary, load_dictionary
from sae.evaluation.evaluate import EvalConfig, evaluate
from sae.models import resolve_device
from sae.pages.compare import compare_again
from sae.rows.origin import check_same_text
from sae.rows.own import OwnTensors
from sae.run import RANDOM_MODEL_CACHE, Run, cache_location, keep_settings
from sae.training import turns
from sae.training.config import SweepConfig, TrainConfig
from sae.training.loop import Diverged
from sae.training.task import open_source, tasks_of
from sae.training.train import train_together

__all__ = ["TrainConfig", "run"]


def run(config: TrainConfig, rows: OwnTensors | None = None) -> Dictionary:
    """Train, or go on from a checkpoint, or reuse a finished dictionary.

    Args:
        rows: tensors (n, d_in) to train on in place of a cache, of any n; pairs of them,
            (n, d_in) and (n, d_out), for a transcoder.
    """
    resolve_device(config.device)
    check_writable(config.dictionary_path)
    if config.control and rows is None:
        run_all([config])
        return load_dictionary(config.dictionary_path)
    require(
        "random_model" not in config.control,
        "control=random_model needs the activations of a model, but rows=... are your own; "
        "train a dictionary on rows of a model with random weights yourself",
    )
    source = open_source(config, rows)
    tasks = tasks_of([config, *config.controls()], source)
    if not all(task.is_current() for task in tasks):
        turns.check_memory(tasks, source)
    trained = train_together(tasks, source)
    _keep_settings([] if rows is not None else [task.config for task in trained])
    return load_dictionary(config.dictionary_path)


def product_seconds(device: str) -> float:
    """Return how long a product of two square matrices takes on `auto`, `cpu` or `cuda`."""
    return turns.product_seconds(resolve_device(device))


def sweep(configs: Iterable[TrainConfig]) -> list[Dictionary]:
    """Train several dictionaries side by side, and return them in their order.

    Raises:
        UserError: if something is not a `TrainConfig`, or if two of them would write the same
            folder.
    """
    require(
        isinstance(configs, Iterable),
        f"sae.sweep takes a list of TrainConfigs, but was given: {type(configs).__name__}",
    )
    wanted = list(configs)
    require(bool(wanted), "sae.sweep was given no configuration; give at least one TrainConfig")
    for config in wanted:
        require(
            isinstance(config, TrainConfig),
            f"sae.sweep takes TrainConfigs, but was given: {type(config).__name__}",
        )
        check_numbers(config)
    refuse_twins(wanted)
    run_all(wanted)
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


def run_all(configs: Sequence[TrainConfig]) -> None:
    """Train them all, in as few passes over their rows as memory allows, and compare them.

    Dictionaries that read the same batches train side by side; each is what it would be alone.
    If some diverge the others are finished first.

    Raises:
        UserError: before anything is trained if one does not fit in memory.
        Diverged: in the end, if one diverged.
    """
    for config in configs:
        _check_random_model(config)
    configs = _grouped([one for config in configs for one in (config, *config.controls())])
    for config in configs:
        resolve_device(config.device)
        check_writable(config.dictionary_path)
    diverged: list[Diverged] = []
    compared: list[list[TrainConfig]] = []
    for members in _by(configs, _stream).values():
        source = open_source(members[0])
        plan, found = turns.train_in_turns(tasks_of(members, source), source, "train")
        diverged += found
        trained = [[task.config for task in turn] for turn in plan]
        reused = [config for config in members if not any(config in turn for turn in trained)]
        _keep_settings([config for turn in trained for config in turn])
        compared += [*trained, reused]
    _evaluate(compared)
    if diverged:
        raise Diverged("; ".join(map(str, diverged)))


def _keep_settings(trained: Sequence[TrainConfig]) -> None:
    """Write as `training/ID.yaml` what trains each alone, without what holds for several."""
    for config in (one for one in trained if one.dictionary_path.exists()):
        keep_settings(replace(config, sweep=SweepConfig()), "train", config.state_path)


def _check_random_model(config: TrainConfig) -> None:
    """Refuse a control on a random model that has no cache of the same text."""
    if "random_model" not in config.control or config.cache_location is None:
        return
    main, place = config.cache_location, cache_location(config.run, RANDOM_MODEL_CACHE)
    require(
        Path(place).exists(),
        f"control=random_model reads {place}, which does not exist; make it with the same "
        f"words as {main}, and: cache={place} model.random_weights=true",
    )
    check_same_text(open_cache(main), open_cache(place))


def _grouped(configs: Sequence[TrainConfig]) -> list[TrainConfig]:
    """Return them with a group for wandb to show them together by."""
    if len(configs) == 1:
        return list(configs)
    members = digest(sorted(config.id for config in configs))[:6]
    found = []
    for config in configs:
        group = config.logger.group or f"{Path(config.run).name}-{members}"
        found.append(replace(config, logger=replace(config.logger, group=group)))
    return found


def _stream(config: TrainConfig) -> str:
    """Return what is equal for all that read the same batches."""
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
        for run, members in _by(there, lambda config: config.run).items():
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
        compare_again(Run.at(run), one.sweep.max_l0)


def _by(
    configs: Sequence[TrainConfig], key: Callable[[TrainConfig], str]
) -> dict[str, list[TrainConfig]]:
    found: dict[str, list[TrainConfig]] = {}
    for config in configs:
        found.setdefault(key(config), []).append(config)
    return found
