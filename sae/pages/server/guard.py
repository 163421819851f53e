"""Where a server listens, and who may talk to it: its own pages, in a browser of somebody here.

A page of another site that is open in the same browser can send requests to this machine too.
It cannot choose the headers `Host`, `Origin` and `Sec-Fetch-*`, so these tell it apart.
"""

import asyncio
import base64
import errno
import hashlib
import ipaddress
import logging
import re
import signal
import socket
import threading
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web

from sae.base import UserError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Without it any site could load the atlas's data as scripts of its own.
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "sae",
}
_INLINE = re.compile(
    r'<script(?![^>]*\b(?:src=|type="application/json"))[^>]*>(.*?)</script>', re.DOTALL
)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server that is bound to `host`."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def name_check(host: str) -> Callable[[str], bool]:
    """Return what tells whether a name is one of a server that is bound to `host`.

    A site that lets its own name point to this machine (DNS rebinding) comes with that name.
    Beyond loopback every address in numbers is ours: it cannot be pointed elsewhere.
    """
    names = {"localhost", "127.0.0.1", "::1", host.lower()}
    if is_loopback(host):
        return lambda name: name in names
    names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    return lambda name: name in names or _address(name) is not None


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def guard(is_own_name: Callable[[str], bool]) -> Handler:
    """Return a middleware that refuses foreign requests and says each refusal in a sentence."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            _check_names(request, is_own_name)
            if request.method not in ("GET", "HEAD", "POST"):
                raise web.HTTPMethodNotAllowed(request.method, ["GET", "HEAD", "POST"])
            return await handler(request)
        except UserError as error:
            status, sentence = 400, " ".join(str(error).split())
        except web.HTTPRequestEntityTooLarge:
            status, sentence = 413, "the request is too large; give a shorter text"
        except web.HTTPClientError as error:
            status, sentence = error.status, error.text or error.reason
        except web.HTTPRedirection:
            raise
        except Exception:
            logging.getLogger("sae.pages.server").exception(
                "%s %s", request.method, request.path
            )
            status, sentence = 500, "the server has met a defect; its terminal says which"
        return web.json_response({"error": sentence}, status=status)

    return guarded  # type: ignore[return-value]


def _check_names(request: web.Request, is_own_name: Callable[[str], bool]) -> None:
    host = request.headers.get("Host", "")
    if not is_own_name(_name(host)):
        raise web.HTTPForbidden(text=f"this server does not go by the name {host[:80]!r}")
    fetched = request.headers.get("Sec-Fetch-Site", "same-origin")
    followed = request.headers.get("Sec-Fetch-Mode") == "navigate"
    if fetched not in ("same-origin", "none") and not (request.method == "GET" and followed):
        raise web.HTTPForbidden(text="this server answers its own pages alone")
    if request.method != "POST":
        return
    # Programs send no origin; a browser sends one with every POST.
    origin = request.headers.get("Origin")
    if origin is not None and origin != f"http://{host}":
        raise web.HTTPForbidden(text=f"this server answers no pages of {origin[:80]!r}")
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="the request must be of type application/json")


def _name(host: str) -> str:
    # Without the port, which may be a tunnel's.
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
    """Say with every answer how browsers may use it."""
    response.headers.update(_HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")
    # A policy in a 304 would take the place of the page's own.
    if response.status != 304:
        response.headers.setdefault("Content-Security-Policy", policy(""))


def policy(page: str) -> str:
    """Return the content security policy of a page: its own scripts, by hash, and our files."""
    hashes = (hashlib.sha256(script.encode()).digest() for script in _INLINE.findall(page))
    scripts = " ".join(f"'sha256-{base64.b64encode(h).decode()}'" for h in hashes)
    return (
        f"default-src 'none'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
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
