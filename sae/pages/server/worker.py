"""One thread that computes, one thing at a time and in the order asked."""

import asyncio
import ctypes
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class Dropped(Exception):
    """Nobody waits for the result any more."""


class Worker:
    """A model runs once at a time: two at once would take as long, and twice the memory."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = (
            queue.SimpleQueue()
        )
        # No daemon: Python would take away what torch is using, and abort.
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    async def close(self) -> None:
        """End the thread, in the middle of its job if it has one, as loading a model."""
        self._jobs.put(None)
        number = ctypes.c_ulong(self._thread.ident or 0)
        while self._thread.is_alive():
            # It raises this as soon as it is in Python code again.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(number, ctypes.py_object(SystemExit))
            await asyncio.to_thread(self._thread.join, 0.1)

    def put(self, compute: Callable[[], T]) -> "Future[T]":
        """Have something computed later; what has not begun can be cancelled."""
        future: Future[T] = Future()
        self._jobs.put((future, compute))
        return future

    async def do(self, compute: Callable[[Callable[[], None]], T]) -> T:
        """Return the result of `compute`; it is not begun, or stopped, if the caller is gone.

        It is given a function to call now and then, which raises once nobody waits.
        """
        dropped = threading.Event()

        def check() -> None:
            if dropped.is_set():
                raise Dropped

        try:
            return await asyncio.wrap_future(self.put(lambda: compute(check)))
        except asyncio.CancelledError:
            dropped.set()
            raise

    def _run(self) -> None:
        # `close` has it exit wherever it is, between two jobs as well.
        with suppress(SystemExit):
            while (job := self._jobs.get()) is not None:
                _finish(*job)
                # Not kept until the next job comes.
                del job


def _finish(future: Future[Any], compute: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = compute()
    except BaseException as error:
        # It belongs to whoever waits; the thread goes on.
        future.set_exception(error)
    else:
        future.set_result(result)
