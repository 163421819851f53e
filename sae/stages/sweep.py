"""Several dictionaries by one command: side by side where they read the same batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sae.base.errors import UserError
from sae.base.files import check_writable
from sae.base.progress import duration, say
from sae.base.provenance import digest, plain
from sae.cache.layout import open_cache
from sae.dictionary import Dictionary
from sae.exchange.saelens import load_dictionary
from sae.models.load import resolve_device
from sae.stages.eval import EvalConfig, evaluate
from sae.stages.front import say_front, write_front
from sae.stages.train import open_source, train_together, unfinished
from sae.stages.train_config import TrainConfig
from sae.training.loop import Diverged
from sae.training.plan import Load, bytes_together, memory_budget, seconds_for, turns
from sae.training.rows import RowSource


def run(configs: Sequence[TrainConfig]) -> list[Dictionary]:
    """Train them all, in as few passes over their rows as memory allows, and compare them.

    Dictionaries that read the same batches (cache, hooks, batch size, order) train side by
    side; each is what it would be alone. If some diverge the others are finished first.

    Returns:
        The dictionaries, in the order of the configurations.

    Raises:
        UserError: before anything is trained if one does not fit in memory; afterwards if
            one diverged.
    """
    configs = [_grouped(config, configs) for config in configs]
    for config in configs:
        check_writable(config.dictionary_path)
    diverged = []
    for _, members in _by(configs, _stream):
        source = open_source(members[0], _stream_path(members))
        for turn in _planned(unfinished(members, source), source):
            try:
                train_together(turn, source)
            except Diverged as error:
                diverged.append(str(error))
    there = [config for config in configs if config.dictionary_path.exists()]
    _evaluate(there)
    if diverged:
        raise Diverged("; ".join(diverged))
    return [load_dictionary(config.dictionary_path) for config in configs]


def expected_seconds(configs: Sequence[TrainConfig]) -> float | None:
    """About how long their training takes on this machine; None without a cache to tell."""
    total = 0.0
    for config in configs:
        if config.cache_location is None:
            return None
        try:
            cache = open_cache(config.cache_location)
            d_in = cache.d_in(cache.hook(config.hook_name))
        except UserError:
            return None
        total += config.n_steps * config.train_batch_size_tokens * d_in * config.sae.d_sae
    return seconds_for(total, resolve_device(configs[0].device)) if configs else 0.0


def _grouped(config: TrainConfig, configs: Sequence[TrainConfig]) -> TrainConfig:
    """With a group for wandb to show them together by."""
    if config.logger.group is not None or len(configs) == 1:
        return config
    group = f"{Path(config.run).name}-{digest(sorted(c.id for c in configs))[:6]}"
    return replace(config, logger=replace(config.logger, group=group))


def _stream(config: TrainConfig) -> str:
    """The same for all that read the same batches."""
    key = {
        "cache": config.cache_location,
        "hooks": [config.hook_name, config.output_hook_name],
        "batch": config.train_batch_size_tokens,
        "order": config.shuffle_seed,
        "max_norm_multiple": config.max_norm_multiple,
        "device": config.device,
    }
    if config.cache_location is None:
        key |= {"harvest": plain(config.harvest), "mix_rows": config.mix_rows}
    return digest(key)


def _stream_path(members: Sequence[TrainConfig]) -> Path:
    """Where a model that runs beside keeps what it needs to go on."""
    name = digest(sorted(config.id for config in members))
    return Path(members[0].run) / "training" / f".stream-{name}"


def _planned(members: list[TrainConfig], source: RowSource) -> list[list[TrainConfig]]:
    """Who trains together, which is said."""
    if not members:
        return []
    widths = [side.shape[1] for side in source.sample()]
    loads = [_load(config, widths) for config in members]
    device = resolve_device(members[0].device)
    plan = turns(loads, memory_budget(members[0].sweep, device))
    by_name = {config.id: config for config in members}
    total = sum(c.n_steps * c.train_batch_size_tokens * c.sae.d_sae for c in members)
    time = duration(seconds_for(total * widths[0], device))
    most = max(bytes_together(turn) for turn in plan)
    sizes = " and ".join(str(len(turn)) for turn in plan)
    how = "in one pass" if len(plan) == 1 else f"in {len(plan)} turns of {sizes}"
    n = len(members)
    say(
        f"train: {n} {'dictionary' if n == 1 else 'dictionaries'} {how}, {most / 1e9:.2f} GB, "
        f"about {time}"
    )
    return [[by_name[load.name] for load in turn] for turn in plan]


def _load(config: TrainConfig, widths: Sequence[int]) -> Load:
    d_in, d_out = widths[0], widths[-1]
    # Four vectors of latents at most: biases, thresholds, gates.
    n_parameters = config.sae.d_sae * (d_in + d_out + 4) + d_out
    if config.sae.skip_connection:
        n_parameters += d_in * d_out
    batch_bytes = 4 * config.train_batch_size_tokens * sum(widths)
    return Load(config.id, n_parameters, batch_bytes)


def _evaluate(configs: Sequence[TrainConfig]) -> None:
    """Measure them on held-out text, and show the run's front."""
    for run, members in _by(configs, lambda config: config.run):
        one = members[0]
        if not one.sweep.evaluate:
            continue
        if one.cache is None:
            say(f"train: no cache to evaluate on; harvest one, then: sae eval run={run}")
            continue
        asked = EvalConfig(run=run, cache=one.cache, device=one.device)
        evaluate(asked, [config.id for config in members])
        say_front(write_front(Path(run), one.sweep.max_l0))


def _by(
    configs: Sequence[TrainConfig], key: Callable[[TrainConfig], str]
) -> Iterator[tuple[str, list[TrainConfig]]]:
    """The configurations in groups of the same key, in their order."""
    found: dict[str, list[TrainConfig]] = {}
    for config in configs:
        found.setdefault(key(config), []).append(config)
    yield from found.items()
