"""Requests to stop that wait until work is saved: Ctrl-C, SIGTERM, a terminal that closes."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sae.base.progress import say

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """A request to stop that is not Ctrl-C; the shell's status for its signal comes with it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_status = 128 + number


@dataclass
class Interrupts:
    """What is to be raised if somebody has asked to stop."""

    asked: KeyboardInterrupt | None = None


@contextmanager
def deferred_interrupts() -> Iterator[Interrupts]:
    """Signals only set a flag inside; a second one stops at once, as ever.

    In a thread other than the main one, which gets no signals, nothing changes.
    """
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    # Whoever started this in the background, with signals ignored, has its reasons.
    before = {n: handler for n, handler in handlers.items() if handler != signal.SIG_IGN}
    # A terminal that has gone does not say any more that it was one.
    terminals = [number for number in (1, 2) if os.isatty(number)]

    def note(number: int, _: object) -> None:
        interrupts.asked = (
            KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)
        )
        restore()
        if number == signal.SIGHUP:
            # The system and the shell tell of one closed terminal each, and so twice.
            signal.signal(number, signal.SIG_IGN)
            _leave(terminals)
        say("stopping as soon as this step is saved; a second request stops at once")

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield interrupts
    finally:
        restore()


def _leave(terminals: list[int]) -> None:
    """Let go of terminals that have gone: writing to one would fail before work is saved."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in terminals:
            os.dup2(nowhere, number)
        os.close(nowhere)
