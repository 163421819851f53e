"""Being asked to stop: Ctrl-C and SIGTERM wait until what was learned is saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sae.base import say

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM, after saving."""

    exit_status = 143


class Interrupts:
    """Whether somebody has asked to stop."""

    def __init__(self) -> None:
        self.asked: int | None = None

    def check(self) -> None:
        """Stop if asked to.

        Raises:
            KeyboardInterrupt: after Ctrl-C; `Terminated` after SIGTERM.
        """
        if self.asked == signal.SIGTERM:
            raise Terminated
        if self.asked is not None:
            raise KeyboardInterrupt


@contextmanager
def deferred_interrupts() -> Iterator[Interrupts]:
    """Signals only set a flag inside; a second one stops at once, as ever.

    In a thread other than the main one, which gets no signals, nothing changes.
    """
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    # Whoever started this in the background has its reasons.
    before = {n: handler for n, handler in before.items() if handler != signal.SIG_IGN}

    def note(number: int, _: Any) -> None:
        interrupts.asked = number
        restore()
        say("stopping as soon as this step is saved; asked once more, at once")

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield interrupts
    finally:
        restore()
