"""Where a server listens, and what bounds its connections: their number, and their silence."""

import asyncio
import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable
from functools import partial

from aiohttp import web
from aiohttp.http import HttpProcessingError

from sae.base import UserError, require, say
from sae.pages.server.guard import PATIENCE, is_loopback

_MOST_CONNECTIONS = 128
"""A browser has six; each takes one of the files that the system lets a process open."""
_LINGERING = 2.0
"""Seconds for which the rest of a refused request is read, so that its sender sees why."""
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def check_place(host: str, port: int) -> None:
    """Refuse what is no place to listen at, before anything is loaded.

    Raises:
        UserError: for an empty host, or a port that is none.
    """
    require(0 <= port <= 65_535, f"port={port}; give a number from 1 to 65535")
    require(host.strip() != "", "host is empty; say 127.0.0.1 for this machine alone")


def warn_if_open(host: str, can: str) -> None:
    """Say what everybody `can` do who reaches a host, if that is more than this machine."""
    if not is_loopback(host):
        say(
            f"serve: WARNING: with host={host} everybody who can reach this machine can {can}; "
            "there is no password"
        )


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; with port 0 on any free one.

    Raises:
        UserError: if the port is taken or not allowed, or the host is not this machine's.
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
        listening = socket.create_server(address[:2], family=family)
    except OSError as error:
        raise UserError(_why_not(host, port, error)) from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Each connection inherits it: the system ends those whose other side reads no more.
        milliseconds = int(PATIENCE * 1000)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return listening


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


def check_no_loop() -> None:
    """Refuse to serve where a loop runs already.

    Raises:
        UserError: in a notebook, which would wait for ever.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise UserError(
        "sae.serve runs until it is stopped, which a notebook would wait for; "
        "call it in a thread, or run sae serve in a terminal"
    )


def serve_until_stopped(
    make: Callable[[], web.Application],
    listening: socket.socket,
    started: Callable[[Callable[[], None]], None],
) -> None:
    """Answer requests until Ctrl-C or SIGTERM, which are its usual end.

    The application is made inside the loop. `started` is called once requests are answered,
    with a function that ends it from any thread.
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
            make(),
            access_log=None,
            logger=_protocol_logger(),
            handler_cancellation=True,
            keepalive_timeout=PATIENCE,
            lingering_time=_LINGERING,
            # What is compressed is refused, and what cannot be unpacked is no defect.
            auto_decompress=False,
            shutdown_timeout=0.5,
        )
        try:
            await runner.setup()
            assert runner.server is not None
            door = partial(_Door, runner.server)
            server = await loop.create_server(door, sock=listening)
            try:
                started(stop)
                await stopped.wait()
            finally:
                server.close()
        finally:
            await runner.cleanup()

    asyncio.run(serve())


class _Door(asyncio.Protocol):
    """Lets a new connection in, or tells it that there are too many."""

    def __init__(self, server: web.Server) -> None:
        self.server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if len(self.server.connections) >= _MOST_CONNECTIONS:
            transport.write(_FULL)
            transport.close()
        else:
            protocol = self.server()
            transport.set_protocol(protocol)
            protocol.connection_made(transport)


def _protocol_logger() -> logging.Logger:
    """Return a logger for defects; requests that are no HTTP are their sender's."""
    logger = logging.getLogger("sae.pages.server.protocol")
    logger.addFilter(_is_own_defect)
    return logger


def _is_own_defect(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)
