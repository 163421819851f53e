"""Several dictionaries trained from one stream of batches, each as if it were alone."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import chain

from torch import Tensor

from sae.base import progress, say
from sae.rows.source import RowSource
from sae.training.interrupts import Interrupts, deferred_interrupts
from sae.training.loop import Diverged
from sae.training.session import Session

# Saving takes at most this share of the time.
_MOST_SAVING = 0.02


def train_side_by_side(
    sessions: Sequence[Session], source: RowSource, *, batch_size: int, every_seconds: float
) -> dict[Session, Diverged]:
    """Take every session to its last step; each sees every batch of the source once.

    Sessions may be at different steps, as after a kill between two of their checkpoints: the
    stream begins where the first of them is, and each waits for its own next batch. One that
    diverges leaves, and the others go on.

    Args:
        batch_size: rows of a batch, for the bar.
        every_seconds: time between two checkpoints, or more where saving takes long.

    Returns:
        The sessions that diverged, and how.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when everything is saved.
    """
    running = _Running(sessions)
    if not running.sessions:
        return running.diverged
    first = min(session.step for session in running.sessions)
    last = max(session.trainer.n_steps for session in running.sessions)
    scaled = running.sessions[0].trainer.scaled
    saving = _Saving(source, every_seconds)
    with (
        progress(last * batch_size, running.label, "tok", first * batch_size) as bar,
        closing(source.batches(first)) as batches,
    ):
        # The first batch may take minutes, and nothing is there to be saved meanwhile.
        begun = chain([next(batches)], batches)
        with deferred_interrupts() as interrupts:
            for step, rows in enumerate(begun, start=first):
                x, y = scaled(rows)
                running.update(step, x, y)
                bar.update(batch_size)
                bar.set_postfix(running.summary(), refresh=False)
                if saving.due(running.sessions, interrupts):
                    saving.save(step + 1, running)
                    interrupts.check()
                running.dismiss()
                if not running.sessions:
                    break
    return running.diverged


class _Running:
    """The sessions that are not over yet."""

    def __init__(self, sessions: Iterable[Session]) -> None:
        self.sessions = [session for session in sessions if not session.over]
        self.diverged: dict[Session, Diverged] = {}

    @property
    def label(self) -> str:
        """Before the bar."""
        first, n = self.sessions[0].name, len(self.sessions)
        return first if n == 1 else f"{n} dictionaries"

    def update(self, step: int, x: Tensor, y: Tensor) -> None:
        """Give batch number `step`, scaled, to those that wait for it."""
        for session in tuple(self.sessions):
            if session.step == step:
                with self._dropped_if_diverged(session):
                    session.update(x, y)

    def save(self) -> None:
        """Write a checkpoint of each."""
        for session in tuple(self.sessions):
            with self._dropped_if_diverged(session):
                session.save()

    @contextmanager
    def _dropped_if_diverged(self, session: Session) -> Iterator[None]:
        try:
            yield
        except Diverged as error:
            self.diverged[session] = error
            self.sessions.remove(session)
            if self.sessions:
                say(f"train: {session.name}: {error}")

    def dismiss(self) -> None:
        """Let go those that are over."""
        self.sessions = [session for session in self.sessions if not session.over]

    def summary(self) -> dict[str, str]:
        """The latest figures, as a range where there are several dictionaries."""
        found = [session.latest for session in self.sessions if session.latest]
        shown = {}
        for short, (name, form) in _SHOWN.items():
            values = [figures[name] for figures in found]
            ends = [format(end(values), form) for end in (min, max) if values]
            shown[short] = "–".join(dict.fromkeys(ends))
        return shown


_SHOWN = {
    "loss": ("losses/overall_loss", ".1f"),
    "l0": ("metrics/l0", ".1f"),
    "ev": ("metrics/explained_variance", ".3f"),
    "dead": ("sparsity/dead_features", ".0f"),
}


class _Saving:
    """Checkpoints of all sessions, when it is time."""

    def __init__(self, source: RowSource, every_seconds: float) -> None:
        self._source = source
        self._pause = self._every_seconds = every_seconds
        self._last = time.perf_counter()

    def due(self, sessions: Iterable[Session], interrupts: Interrupts) -> bool:
        """Whether it is time, a session asks for it, or somebody wants to stop."""
        waited = time.perf_counter() - self._last
        asked = interrupts.asked is not None or any(s.asks_to_be_saved for s in sessions)
        return asked or waited > self._pause

    def save(self, n_batches: int, running: _Running) -> None:
        """Save the source, after `n_batches`, and every session."""
        began = time.perf_counter()
        # Sessions could not go on from where the source cannot.
        self._source.save(n_batches)
        running.save()
        self._source.forget()
        self._last = time.perf_counter()
        self._pause = max(self._every_seconds, (self._last - began) / _MOST_SAVING)
