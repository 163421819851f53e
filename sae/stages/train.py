"""`sae train`: rows to a dictionary."""

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from sae.base.errors import UserError, require
from sae.base.files import check_writable, only_process, remove_unfinished
from sae.base.progress import say
from sae.base.provenance import digest, plain, versions
from sae.cache.layout import open_cache
from sae.core.scaling import InputScaling, moments
from sae.dictionary import Dictionary, Record
from sae.dictionary.files import load_dictionary, save_dictionary
from sae.dictionary.record import TrainingRecord
from sae.models.load import resolve_device
from sae.stages.identity import Identity, Task, continued, finished, tasks_of
from sae.stages.live_rows import LiveRows
from sae.stages.train_config import TrainConfig
from sae.training.cached_rows import CachedRows
from sae.training.checkpoint import Checkpoints
from sae.training.loggers import Logbooks
from sae.training.loop import Diverged, Trainer
from sae.training.own_rows import OwnRows
from sae.training.rows import Rows, RowSource
from sae.training.session import Session, Watch
from sae.training.side_by_side import train_side_by_side

__all__ = ["TrainConfig", "open_source", "run", "train_together", "unfinished"]


def run(config: TrainConfig, rows: Iterable[Any] | None = None) -> Dictionary:
    """Train, or go on from a checkpoint, or reuse a finished dictionary.

    Args:
        rows: tensors (n, d_in) to train on in place of a cache, of any n; pairs of them,
            (n, d_in) and (n, d_out), for a transcoder.
    """
    check_writable(config.dictionary_path)
    source = open_source(config, rows)
    train_together(unfinished([config], source), source)
    return load_dictionary(config.dictionary_path)


def open_source(config: TrainConfig, rows: Iterable[Any] | None = None) -> RowSource:
    """Where the rows come from: the user, a cache, or a model that runs beside."""
    if rows is not None:
        return OwnRows(
            rows,
            hook_name=config.hook_name,
            hook_name_out=config.hook_name_out,
            batch_size=config.train_batch_size_tokens,
        )
    if config.cache_location is None:
        return LiveRows(
            config.harvest,
            config.hook_name,
            config.hook_name_out,
            batch_size=config.train_batch_size_tokens,
            mix_rows=config.mix_rows,
            max_norm_multiple=config.max_norm_multiple,
            seed=config.shuffle_seed,
            state_folder=config.state_path.parent,
        )
    return CachedRows(
        open_cache(config.cache_location),
        config.hook_name,
        config.hook_name_out,
        batch_size=config.train_batch_size_tokens,
        max_norm_multiple=config.max_norm_multiple,
        seed=config.shuffle_seed,
    )


def unfinished(configs: Sequence[TrainConfig], source: RowSource) -> list[Task]:
    """What is still to be trained; of the others it is said that they are reused.

    Raises:
        UserError: if one was finished with another configuration.
    """
    left = []
    for task in tasks_of(configs, source):
        if finished(task):
            say(f"train: {task.config.dictionary_path} is there already, reused")
        else:
            left.append(task)
    return left


def train_together(tasks: Sequence[Task], source: RowSource) -> None:
    """Train them all from the batches of one source; if some diverge, the others are finished.

    Raises:
        UserError: if another process trains one of them, or if one was begun with another
            configuration.
        Diverged: if one diverged.
    """
    with ExitStack() as stack:
        for config, _ in tasks:
            stack.enter_context(_only_trainer(config))
            remove_unfinished(config.state_path)
            remove_unfinished(config.dictionary_path.parent, config.id)
        # Asked again: whoever had the lock before may have finished it.
        tasks = [task for task in tasks if not finished(task)]
        if not tasks:
            return
        configs = [task.config for task in tasks]
        start = Start.of(source.sample(), source.held_out(configs[0].n_eval_rows))
        sessions = [_session(task, start) for task in tasks]
        for session in sessions:
            stack.callback(session.close)
        _open_loggers(configs, sessions)
        diverged = train_side_by_side(
            sessions,
            source,
            batch_size=configs[0].train_batch_size_tokens,
            every_seconds=configs[0].checkpoint.every_seconds,
        )
        for config, session in zip(configs, sessions, strict=True):
            if session not in diverged:
                trained = session.dictionary().placed(*source.places)
                record = _record(config, source, session.identity)
                save_dictionary(replace(trained, record=record), config.dictionary_path)
                say(f"train: {config.dictionary_path} is written")
    if diverged:
        said = (f"{session.name}: {error}" for session, error in diverged.items())
        raise Diverged("; ".join(said))


def _only_trainer(config: TrainConfig) -> Any:
    """Be the one process that trains this dictionary."""

    def refusal(owner: str) -> UserError:
        who = f" ({owner})" if owner else ""
        return UserError(
            f"{config.state_path}: another process{who} is training this dictionary; wait for "
            "it, or give this one another name=..."
        )

    return only_process(config.state_path / ".lock", refusal)


@dataclass(frozen=True, slots=True)
class Start:
    """What all dictionaries of the same rows begin with."""

    scalings: list[InputScaling]
    """Of the rows to read, and of those to predict where they are others."""
    sample: Rows
    """Scaled."""
    held_out: Rows | None
    """Raw."""

    @classmethod
    def of(cls, sample: Rows, held_out: Rows | None) -> Self:
        """From raw rows."""
        raw = [side.float() for side in sample]
        scalings = [_scaling(side) for side in raw]
        scaled = (scaling(side) for scaling, side in zip(scalings, raw, strict=True))
        return cls(scalings, tuple(scaled), held_out)


def _session(task: Task, start: Start) -> Session:
    """A dictionary in training, at its newest checkpoint if there is one."""
    config, wanted = task
    checkpoints = Checkpoints(config.state_path, config.checkpoint)
    found = checkpoints.newest()
    as_begun = wanted if found is None else continued(task, found)
    session = Session(
        config.id,
        make_trainer(config, start),
        config.state_path,
        as_begun,
        checkpoints=checkpoints,
        watch=Watch(config.log_every_steps, config.eval_interval, start.held_out),
    )
    if found is not None:
        session.load(found.state)
        say(f"train: {config.id} goes on from step {session.step:,} of {config.n_steps:,}")
    else:
        require(
            not config.dictionary_path.exists(),
            f"extend=true: {config.state_path} holds no checkpoint of {config.dictionary_path} "
            "to go on from; train to training_tokens="
            f"{config.training_tokens} under another name=...",
        )
    return session


def make_trainer(config: TrainConfig, start: Start) -> Trainer:
    """A trainer at its first step."""
    device = resolve_device(config.device)
    scalings, scaled = start.scalings, start.sample
    require(
        not config.sae.aligned or scaled[0].shape[1] == scaled[-1].shape[1],
        f"sae.aligned=True needs hooks of one width; {config.hook_name} has "
        f"{scaled[0].shape[1]}, {config.hook_name_out} {scaled[-1].shape[1]}",
    )
    generator = torch.Generator().manual_seed(config.seed)
    sae = config.sae.build(scaled[0], generator, *scaled[1:])
    if config.init_from is not None:
        sae.begin_with(_beginning(config), scalings[0], scalings[-1])
    sae.matmul_dtype = _matmul_dtype(config, device)
    on_device = [InputScaling(s.mean.to(device), s.scale) for s in scalings]
    return Trainer(
        sae.to(device),
        on_device[0],
        config.optim,
        lr=config.lr,
        n_steps=config.n_steps,
        dead_window_rows=int(config.dead_feature_window * config.training_tokens),
        output_scaling=on_device[-1],
    )


def _beginning(config: TrainConfig) -> Dictionary:
    """The dictionary whose weights to begin with."""
    found = load_dictionary(str(config.init_from))
    wanted = "an autoencoder" if config.hook_name_out is None else "a transcoder"
    kind = "a transcoder" if found.is_transcoder else "an autoencoder"
    require(
        kind == wanted,
        f"init_from={config.init_from} is {kind}, and {wanted} is to be trained; "
        "hook_name_out=... makes a transcoder",
    )
    return found


def _matmul_dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    narrow = config.matmul_dtype == "bfloat16" or (
        config.matmul_dtype == "auto" and device.type == "cuda"
    )
    return torch.bfloat16 if narrow else None


def _scaling(sample: Tensor) -> InputScaling:
    mean, mean_square_distance = moments(sample)
    require(
        not math.isnan(mean_square_distance),
        "the rows hold NaN or infinite activations; nothing was trained, verify the cache",
    )
    require(mean_square_distance > 0, "all rows are the same; nothing to learn")
    return InputScaling.from_moments(mean, mean_square_distance)


def _open_loggers(configs: Sequence[TrainConfig], sessions: Sequence[Session]) -> None:
    logbooks = Logbooks(configs[0].logger)
    for config, session in zip(configs, sessions, strict=True):
        if session.over:
            continue
        session.loggers = logbooks.open(
            config.state_path / "metrics.jsonl",
            folder=config.dictionary_path.parent.parent,
            name=config.id,
            run_id=f"{config.id}-{digest(session.identity)}",
            step=session.step,
            settings=plain(config),
        )


def _record(config: TrainConfig, source: RowSource, identity: Identity) -> Record:
    """What travels with the weights: where the rows come from, and how it was trained."""
    training = TrainingRecord(
        digest=digest(identity),
        identity=identity,
        architecture=config.sae.architecture,
        sae=plain(config.sae),
        optim={**plain(config.optim), "lr": config.lr},
        training_tokens=config.n_steps * config.train_batch_size_tokens,
        train_batch_size_tokens=config.train_batch_size_tokens,
        seed=config.seed,
        versions=versions(),
    )
    limit = config.max_norm_multiple
    return replace(source.record, training=training, max_norm_multiple=limit)
