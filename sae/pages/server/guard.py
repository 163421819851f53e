"""Who may talk to a server: its own pages, in a browser of somebody here.

A page of another site that is open in the same browser can send requests to this machine too.
It cannot choose the headers `Host`, `Origin` and `Sec-Fetch-*`, so these tell it apart.
"""

import asyncio
import base64
import hashlib
import ipaddress
import logging
import re
import socket
from collections.abc import Awaitable, Callable

from aiohttp import web

from sae.base import UserError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

PATIENCE = 30.0
"""Seconds in which a request is to arrive: its headers, and then its body."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Without it any site could load the atlas's data as scripts of its own.
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "sae",
}
_AUTHORITY = re.compile(
    r"(?:\[(?P<v6>[0-9a-f]*:[0-9a-f:.]*)\]|(?P<name>[a-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?",
    re.IGNORECASE | re.ASCII,
)
"""A host with a port, the only thing that a browser says in `Host`: no user, path or blank."""
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


def guard(
    is_own_name: Callable[[str], bool],
    refusal: Callable[[str], object] = lambda sentence: {"error": sentence},
) -> Handler:
    """Return a middleware that refuses foreign requests and says each refusal in a sentence.

    Args:
        is_own_name: whether a request asks for this server.
        refusal: makes what is answered, as JSON, of the sentence.
    """

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            _check_names(request, is_own_name)
            if request.method not in ("GET", "HEAD", "POST"):
                raise web.HTTPMethodNotAllowed(request.method, ["GET", "HEAD", "POST"])
            await _receive(request)
            return await handler(request)
        except UserError as error:
            status, sentence = 400, "; ".join(" ".join(str(one).split()) for one in error.args)
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
        return web.json_response(refusal(sentence), status=status)

    return guarded  # type: ignore[return-value]


async def _receive(request: web.Request) -> None:
    """Wait for the whole body, which is kept for the handler; nobody may take for ever."""
    if request.method != "POST":
        return
    try:
        async with asyncio.timeout(PATIENCE):
            await request.read()
    except TimeoutError as error:
        raise web.HTTPRequestTimeout(
            text=f"the request was not complete after {PATIENCE:g} seconds"
        ) from error


def _check_names(request: web.Request, is_own_name: Callable[[str], bool]) -> None:
    if not request.raw_path.startswith("/"):
        # What comes before the path would be in the place of `Host`, and unchecked.
        raise web.HTTPBadRequest(text="this server is no proxy; ask for a path")
    host = _only(request, "Host") or ""
    if not is_own_name(_name(host)):
        raise web.HTTPForbidden(text=f"this server does not go by the name {host[:80]!r}")
    fetched = _only(request, "Sec-Fetch-Site") or "none"
    followed = _only(request, "Sec-Fetch-Mode") == "navigate"
    if fetched not in ("same-origin", "none") and not (request.method == "GET" and followed):
        raise web.HTTPForbidden(text="this server answers its own pages alone")
    if request.method != "POST":
        return
    # Programs send no origin; a browser sends one with every POST.
    origin = _only(request, "Origin")
    if origin is not None and origin != f"http://{host}":
        raise web.HTTPForbidden(text=f"this server answers no pages of {origin[:80]!r}")
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="the request must be of type application/json")
    if _only(request, "Content-Encoding") not in (None, "identity"):
        raise web.HTTPUnsupportedMediaType(text="the request must not be compressed")


def _only(request: web.Request, name: str) -> str | None:
    """Return a header that can be there once, or None: of two, each reader picks its own."""
    found = request.headers.getall(name, [])
    if len(found) > 1:
        raise web.HTTPBadRequest(text=f"the request has more than one header {name}")
    return found[0] if found else None


def _name(host: str) -> str:
    """Return the name in a `Host` header, or "" if it is not well formed.

    The port may be any, as a tunnel's is another than ours.
    """
    found = _AUTHORITY.fullmatch(host)
    if found is None or not 0 < int(found["port"] or 80) <= 65_535:
        return ""
    return (found["v6"] or found["name"]).lower()


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
