"""Several dictionaries trained from one stream of batches, each as if it were alone."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import chain

from torch import Tensor

from sae.base import progress, say
from sae.rows.source import RowSource
from sae.training.interrupts import deferred_interrupts
from sae.training.loop import Diverged
from sae.training.session import Session

# Saving takes at most this share of the time.
_MOST_SAVING = 0.02
_SHOWN = {
    "loss": ("losses/overall_loss", ".1f"),
    "l0": ("metrics/l0", ".1f"),
    "ev": ("metrics/explained_variance", ".3f"),
    "dead": ("sparsity/dead_features", ".0f"),
}


def train_side_by_side(
    sessions: Sequence[Session], source: RowSource
) -> dict[Session, Diverged]:
    """Take every session to its last step; each sees every batch of the source once.

    Sessions may be at different steps, as after a kill between two of their checkpoints: the
    stream begins where the first of them is, and each waits for its own next batch. One that
    diverges leaves, and the others go on. All have one size of batches, and are saved together.

    Returns:
        The sessions that diverged, and how.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when everything is saved.
    """
    running = _Running(sessions, source)
    if not running.sessions:
        return running.diverged
    one, n = running.sessions[0], len(running.sessions)
    first = min(session.step for session in running.sessions)
    last = max(session.trainer.n_steps for session in running.sessions)
    label = one.config.id if n == 1 else f"{n} dictionaries"
    size = one.config.train_batch_size_tokens
    with (
        progress(last * size, label, "tok", first * size) as bar,
        closing(source.batches(first)) as batches,
    ):
        # The first batch may take minutes, and nothing is there to be saved meanwhile.
        begun = chain([next(batches)], batches)
        with deferred_interrupts() as interrupts:
            for step, rows in enumerate(begun, start=first):
                running.update(step, *one.trainer.scaled(rows))
                bar.update(size)
                bar.set_postfix(running.summary(), refresh=False)
                if interrupts.asked is not None or running.to_be_saved:
                    running.save(step + 1)
                    interrupts.check()
                running.dismiss()
                if not running.sessions:
                    break
    return running.diverged


class _Running:
    """The sessions that are not over yet, and when they were saved."""

    def __init__(self, sessions: Sequence[Session], source: RowSource) -> None:
        self.sessions = [session for session in sessions if not session.over]
        self.diverged: dict[Session, Diverged] = {}
        self._source = source
        self._pause = self._every_seconds = sessions[0].config.checkpoint.every_seconds
        self._saved_at = time.perf_counter()

    def update(self, step: int, x: Tensor, y: Tensor) -> None:
        """Give batch number `step`, scaled, to those that wait for it."""
        for session in tuple(self.sessions):
            if session.step == step:
                with self._dropped_if_diverged(session):
                    session.update(x, y)

    @property
    def to_be_saved(self) -> bool:
        waited = time.perf_counter() - self._saved_at
        return waited > self._pause or any(s.asks_to_be_saved for s in self.sessions)

    def save(self, n_batches: int) -> None:
        """Save the source, after so many batches, and every session."""
        began = time.perf_counter()
        # Sessions could not go on from where the source cannot.
        self._source.save(n_batches)
        for session in tuple(self.sessions):
            with self._dropped_if_diverged(session):
                session.save()
        self._source.forget()
        self._saved_at = time.perf_counter()
        self._pause = max(self._every_seconds, (self._saved_at - began) / _MOST_SAVING)

    @contextmanager
    def _dropped_if_diverged(self, session: Session) -> Iterator[None]:
        try:
            yield
        except Diverged as error:
            self.diverged[session] = error
            self.sessions.remove(session)
            if self.sessions:
                say(f"train: {session.config.id}: {error}")

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
