"""The turns that a sweep trains in, and the time that they take on this machine."""

from collections.abc import Sequence

from sae.base import UserError, duration, say
from sae.cache.layout import open_cache
from sae.models import resolve_device
from sae.rows.source import RowSource
from sae.training.config import TrainConfig
from sae.training.plan import Load, bytes_together, memory_budget, seconds_for, turns
from sae.training.task import Task


def expected_seconds(configs: Sequence[TrainConfig]) -> float | None:
    """Return about how long the training takes here; None without a cache to tell."""
    total = 0.0
    for config in configs:
        if config.cache_location is None:
            return None
        try:
            cache = open_cache(config.cache_location)
            d_in = cache.d_in(cache.hook(config.hook_name))
        except UserError:
            return None
        total += d_in * _rows_times_latents(config)
    n_steps = sum(config.n_steps for config in configs)
    return seconds_for(total, n_steps, resolve_device(configs[0].device)) if configs else 0.0


def in_turns(tasks: Sequence[Task], source: RowSource) -> list[list[Task]]:
    """Part a sweep into turns that fit in memory, and say how long it will take.

    Raises:
        UserError: if one dictionary alone does not fit.
    """
    if not tasks:
        return []
    members = [task.config for task in tasks]
    widths = [side.shape[1] for side in source.sample()]
    loads = [load_of(config, widths) for config in members]
    device = resolve_device(members[0].device)
    plan = turns(loads, memory_budget(members[0].sweep, device))
    n_steps = sum(config.n_steps for config in members)
    multiplications = widths[0] * sum(map(_rows_times_latents, members))
    time = duration(seconds_for(multiplications, n_steps, device))
    most = max(bytes_together(loads[turn.start : turn.stop]) for turn in plan)
    sizes = " and ".join(str(len(turn)) for turn in plan)
    how = "in one pass" if len(plan) == 1 else f"in {len(plan)} turns of {sizes}"
    n = len(members)
    say(
        f"train: {n} {'dictionary' if n == 1 else 'dictionaries'} {how}, {most / 1e9:.2f} GB, "
        f"about {time}"
    )
    return [[tasks[place] for place in turn] for turn in plan]


def load_of(config: TrainConfig, widths: Sequence[int]) -> Load:
    """Return what a training asks of the machine, reading rows of these widths."""
    d_in, d_out = widths[0], widths[-1]
    # Four vectors of latents at most: biases, thresholds, gates.
    n_parameters = config.sae.d_sae * (d_in + d_out + 4) + d_out
    if config.sae.skip_connection:
        n_parameters += d_in * d_out
    batch_bytes = 4 * config.train_batch_size_tokens * sum(widths)
    return Load(config.id, n_parameters, batch_bytes)


def _rows_times_latents(config: TrainConfig) -> float:
    return config.n_steps * config.train_batch_size_tokens * config.sae.d_sae
