"""Who may talk to the server: its own pages, in a browser that asked for it by name.

A page of another site that is open in the same browser can send requests to this machine too.
It cannot choose the headers `Host`, `Origin` and `Sec-Fetch-*`, so these tell it apart.
"""

import base64
import hashlib
import ipaddress
import logging
import re
import socket
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
    """The name in a `Host` header, without its port: the port may be a tunnel's."""
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
