"""Dictionaries fitted side by side to the rows of one source, each kept in its run."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from sae.base import digest, plain, require, say, versions
from sae.cache.layout import open_cache
from sae.dictionary import Record, TrainingRecord, save_dictionary
from sae.rows.cached import CachedRows
from sae.rows.live import LiveRows
from sae.rows.own import OwnRows, OwnTensors
from sae.rows.source import RowSource
from sae.run import make_together
from sae.training.checkpoint import Checkpoints
from sae.training.config import TrainConfig
from sae.training.loggers import Logbooks
from sae.training.loop import Diverged
from sae.training.session import Session, Watch
from sae.training.side_by_side import train_side_by_side
from sae.training.start import Start, make_trainer
from sae.training.task import Identity, Task, continued


def open_source(config: TrainConfig, rows: OwnTensors | None = None) -> RowSource:
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


def train_together(tasks: Sequence[Task], source: RowSource) -> list[Task]:
    """Train dictionaries from the batches of one source, but those that are there already.

    Returns:
        Those that were trained.

    Raises:
        UserError: if another process trains one of them, or if one was begun with another
            configuration.
        Diverged: if one diverged; the others are finished first.
    """
    return make_together(tasks, lambda left: _train(left, source), command="train")


def _train(tasks: Sequence[Task], source: RowSource) -> None:
    first = tasks[0].config
    start = Start.of(source.sample(), source.held_out(first.n_eval_rows))
    with ExitStack() as stack:
        sessions = [_session(task, start) for task in tasks]
        for session in sessions:
            stack.callback(session.close)
        _open_loggers(tasks, sessions)
        diverged = train_side_by_side(
            sessions,
            source,
            batch_size=first.train_batch_size_tokens,
            every_seconds=first.checkpoint.every_seconds,
        )
        for task, session in zip(tasks, sessions, strict=True):
            if session not in diverged:
                trained = session.dictionary().placed(*source.places)
                record = _record(task.config, source, session.identity)
                save_dictionary(replace(trained, record=record), task.config.dictionary_path)
                say(f"train: {task.place} is written")
    if diverged:
        said = (f"{session.name}: {error}" for session, error in diverged.items())
        raise Diverged("; ".join(said))


def _session(task: Task, start: Start) -> Session:
    """A dictionary in training, at its newest checkpoint if there is one."""
    config, wanted = task.config, task.identity
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


def _open_loggers(tasks: Sequence[Task], sessions: Sequence[Session]) -> None:
    logbooks = Logbooks(tasks[0].config.logger)
    for task, session in zip(tasks, sessions, strict=True):
        config = task.config
        if session.over:
            continue
        session.loggers = logbooks.open(
            config.state_path / "metrics.jsonl",
            folder=Path(config.run),
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
