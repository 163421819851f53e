"""A server on one port until somebody stops it."""

import asyncio
import errno
import signal
import socket
import threading
from collections.abc import Callable

from aiohttp import web

from sae.base import UserError


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; with port 0 on any free one.

    Raises:
        UserError: if the port is taken (then a free one is named) or not allowed, or the host
            is not this machine's.
    """
    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"host={host} is not known here; say 127.0.0.1 for this machine alone"
        ) from error
    try:
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise UserError(_why_not(host, port, error)) from error


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        with listen(host, 0) as free:
            return f"port={port} is taken; port={free.getsockname()[1]} is free"
    if error.errno == errno.EACCES:
        return f"port={port} is not allowed to you; give one from 1024 to 65535"
    return (
        f"host={host} cannot be listened on here ({error.strerror}); "
        "say 127.0.0.1 for this machine alone"
    )


def address_of(listening: socket.socket) -> str:
    """Return the address at which a browser on this machine finds the server."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def serve_until_stopped(
    make: Callable[[], web.Application],
    listening: socket.socket,
    started: Callable[[Callable[[], None]], None],
) -> None:
    """Answer requests until Ctrl-C or SIGTERM, which are its usual end.

    Args:
        make: builds the application, inside the loop.
        started: called once requests are answered, with a function that ends it from any
            thread.
    """

    async def serve() -> None:
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # Whoever started this in the background has its reasons.
                if signal.getsignal(number) != signal.SIG_IGN:
                    loop.add_signal_handler(number, stopped.set)

        def stop() -> None:
            loop.call_soon_threadsafe(stopped.set)

        # Handlers are cancelled when their client goes, and with them what they wait for.
        runner = web.AppRunner(
            make(), access_log=None, handler_cancellation=True, shutdown_timeout=0.5
        )
        try:
            await runner.setup()
            await web.SockSite(runner, listening).start()
            started(stop)
            await stopped.wait()
        finally:
            await runner.cleanup()

    asyncio.run(serve())
