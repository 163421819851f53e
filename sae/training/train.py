"""Dictionaries fitted side by side to the rows of one source, each kept in its run."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from sae.base import digest, plain, say
from sae.dictionary import save_dictionary
from sae.rows.source import RowSource
from sae.run import make_together
from sae.training.loggers import JsonlLogger, WandbLogger
from sae.training.loop import Diverged
from sae.training.session import Session
from sae.training.side_by_side import train_side_by_side
from sae.training.start import Start
from sae.training.task import Task


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
    start = Start.of(source.sample(), source.held_out(tasks[0].config.n_eval_rows))
    with ExitStack() as stack:
        sessions = [Session(task, start) for task in tasks]
        for session in sessions:
            stack.callback(session.close)
        _open_loggers(sessions)
        diverged = train_side_by_side(sessions, source)
        for task, session in zip(tasks, sessions, strict=True):
            if session not in diverged:
                trained = session.dictionary().placed(*source.places)
                record = task.record(source, session.identity)
                save_dictionary(replace(trained, record=record), task.config.dictionary_path)
                say(f"train: {task.place} is written")
    if diverged:
        said = (f"{session.config.id}: {error}" for session, error in diverged.items())
        raise Diverged("; ".join(said))


def _open_loggers(sessions: Sequence[Session]) -> None:
    """Figures go to files, and to wandb if it is asked for; training goes on if it fails."""
    with_wandb = True
    for session in sessions:
        if session.over:
            continue
        config = session.config
        path = config.state_path / "metrics.jsonl"
        session.loggers = [JsonlLogger(path, session.step)]
        if with_wandb and config.logger.name == "wandb":
            run_id = f"{config.id}-{digest(session.identity)}"
            about = Path(config.run), run_id, config.id, plain(config)
            try:
                session.loggers.append(WandbLogger(config.logger, *about))
            except Exception as error:
                # For the others it is not tried again: it may take its time to fail.
                with_wandb = False
                say(f"wandb could not be started ({error}); figures go to {path} only")
