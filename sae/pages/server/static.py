"""Files as answers: compressed, and sent again only if they have changed."""

import asyncio
import gzip
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web

from sae.pages.server.guard import policy

_TYPES = {".html": "text/html", ".js": "text/javascript", ".png": "image/png"}
_SMALL = 4096


def own_file(root: Path, *parts: str) -> Path:
    """Return the regular file at `parts` below `root`, which is a path without links.

    Raises:
        HTTPNotFound: if there is none, a part starts with a dot or holds a separator, or the
            way to it leads over a symbolic link.
    """
    for part in parts:
        if not part or part.startswith(".") or any(c in part for c in "/\\\0"):
            raise web.HTTPNotFound
    path = root.joinpath(*parts)
    if path.suffix not in _TYPES or not path.is_file() or path.resolve() != path:
        raise web.HTTPNotFound
    return path


async def file_response(
    request: web.Request, path: Path, *, live: bool = False
) -> web.StreamResponse:
    """Return the file, or word that what the browser has is still right.

    Args:
        live: whether to tell the page that it can ask this server to compute.
    """
    stat, is_text = path.stat(), path.suffix != ".png"
    accepted = "gzip" in request.headers.get("Accept-Encoding", "")
    packed = accepted and is_text and stat.st_size > _SMALL
    tag = f"{stat.st_mtime_ns:x}-{stat.st_size:x}{'-gzip' if packed else ''}"
    response = web.Response(headers={"Cache-Control": "no-cache", "Vary": "Accept-Encoding"})
    response.etag = tag
    response.last_modified = datetime.fromtimestamp(int(stat.st_mtime), UTC)
    if _is_current(request, tag, response.last_modified):
        response.set_status(304)
        return response
    # Beside the loop: compressing a large file takes some hundredths of a second.
    await asyncio.to_thread(_fill, response, path, live=live, packed=packed)
    response.content_type = _TYPES[path.suffix]
    response.charset = "utf-8" if is_text else None
    return response


def _fill(response: web.Response, path: Path, *, live: bool, packed: bool) -> None:
    body = path.read_bytes()
    if live:
        body = body.replace(b'<html lang="en"', b'<html lang="en" data-live', 1)
    if path.suffix == ".html":
        response.headers["Content-Security-Policy"] = policy(body.decode("utf-8", "replace"))
    if packed:
        response.headers["Content-Encoding"] = "gzip"
        body = gzip.compress(body, 1, mtime=0)
    response.body = body


def _is_current(request: web.Request, tag: str, modified: datetime | None) -> bool:
    if request.if_none_match is not None:
        return any(etag.value in (tag, "*") for etag in request.if_none_match)
    since = request.if_modified_since
    return since is not None and modified is not None and modified <= since
