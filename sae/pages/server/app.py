"""The web application: what can be asked of a run, and the one thread that computes it."""

import asyncio
import ctypes
import gzip
import html
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from aiohttp import web

from sae.pages.page import filled
from sae.pages.server.guard import add_headers, guard, policy
from sae.pages.server.live import LiveAtlas
from sae.pages.server.requests import (
    AskRequest,
    AskStateRequest,
    LabelRequest,
    LensRequest,
    OpenRequest,
    ReadRequest,
    SaveRequest,
    SteerRequest,
    WriteRequest,
    parsed,
)

_MAX_BODY = 1 << 20
_REPORT = ("report.html", "pareto.png")
_TYPES = {".html": "text/html", ".js": "text/javascript", ".png": "image/png"}
_SMALL = 4096
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pages:
    """What is served."""

    run: Path
    """Without links."""
    atlases: Mapping[str, LiveAtlas]
    unreadable: Sequence[str]
    """A sentence for each atlas that cannot be shown."""


def application(pages: Pages, is_own_name: Callable[[str], bool]) -> web.Application:
    """Return the application; the first model is loaded in the background from now on."""
    handlers = _Handlers(pages)
    app = web.Application(
        middlewares=[guard(is_own_name)],  # type: ignore[list-item]
        client_max_size=_MAX_BODY,
    )
    app.on_response_prepare.append(add_headers)
    app.on_cleanup.append(handlers.close)
    app.router.add_get("/", handlers.home)
    app.router.add_get("/favicon.ico", handlers.nothing)
    for name in _REPORT:
        app.router.add_get(f"/{name}", handlers.report)
    app.router.add_get("/atlas/{id}", handlers.moved)
    app.router.add_get("/atlas/{id}/", handlers.page)
    app.router.add_get("/atlas/{id}/data/{path:.+}", handlers.data)
    app.router.add_get("/atlas/{id}/api/status", handlers.status)
    app.router.add_post("/atlas/{id}/api/read", handlers.read)
    app.router.add_post("/atlas/{id}/api/steer", handlers.steer)
    app.router.add_post("/atlas/{id}/api/ask", handlers.ask)
    app.router.add_post("/atlas/{id}/api/lens", handlers.lens)
    app.router.add_post("/atlas/{id}/api/ask_state", handlers.ask_state)
    app.router.add_post("/atlas/{id}/api/write", handlers.write)
    app.router.add_post("/atlas/{id}/api/save", handlers.save)
    app.router.add_post("/atlas/{id}/api/open", handlers.open)
    app.router.add_get("/atlas/{id}/api/presets", handlers.presets)
    app.router.add_post("/atlas/{id}/api/label", handlers.label)
    return app


class _Handlers:
    def __init__(self, pages: Pages) -> None:
        self.pages = pages
        self.worker = Worker()
        self.labelling = asyncio.Lock()
        self.prepared: set[str] = set()
        if pages.atlases:
            self._prepare(next(iter(pages.atlases)))

    def _prepare(self, name: str) -> None:
        if name not in self.prepared:
            self.prepared.add(name)
            self.worker.put(self.pages.atlases[name].prepare)

    async def close(self, _: web.Application) -> None:
        await self.worker.close()

    async def nothing(self, _: web.Request) -> web.StreamResponse:
        # Browsers ask for it by themselves.
        return web.Response(status=204)

    def _atlas(self, request: web.Request) -> LiveAtlas:
        name = request.match_info["id"]
        if name not in self.pages.atlases:
            raise web.HTTPNotFound(text=f"there is no atlas {name[:80]!r} here")
        return self.pages.atlases[name]

    def _file(self, request: web.Request, *parts: str) -> Path:
        self._atlas(request)
        return _own_file(self.pages.run, "atlas", request.match_info["id"], *parts)

    async def home(self, _: web.Request) -> web.StreamResponse:
        names = list(self.pages.atlases)
        if len(names) == 1 and not self.pages.unreadable:
            raise web.HTTPFound(_address(names[0]))
        entries = []
        for name, atlas in self.pages.atlases.items():
            figures = "".join(
                f"<div><dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd></div>"
                for key, value in atlas.figures.items()
            )
            link = f'<a href="{_address(name)}">{html.escape(name)}</a>'
            entries.append(f"<li>{link}<dl>{figures}</dl></li>")
        entries += [f"<li>{html.escape(sentence)}</li>" for sentence in self.pages.unreadable]
        if (self.pages.run / _REPORT[0]).is_file():
            entries.append(f'<li><a href="/{_REPORT[0]}">the report of this run</a></li>')
        title = html.escape(self.pages.run.name)
        text = filled("home.html", title=title, entries="\n".join(entries))
        return web.Response(text=text, content_type="text/html")

    async def report(self, request: web.Request) -> web.StreamResponse:
        return await _file_response(request, _own_file(self.pages.run, request.path[1:]))

    async def moved(self, request: web.Request) -> web.StreamResponse:
        self._atlas(request)
        raise web.HTTPFound(_address(request.match_info["id"]))

    async def page(self, request: web.Request) -> web.StreamResponse:
        return await _file_response(request, self._file(request, "index.html"), live=True)

    async def data(self, request: web.Request) -> web.StreamResponse:
        parts = request.match_info["path"].split("/")
        if parts == ["labels.js"]:
            async with self.labelling:
                await asyncio.to_thread(self._atlas(request).refresh_labels)
        path = self._file(request, "data", *parts)
        if path.suffix != ".js":
            raise web.HTTPNotFound
        return await _file_response(request, path)

    async def status(self, request: web.Request) -> web.StreamResponse:
        atlas = self._atlas(request)
        self._prepare(request.match_info["id"])
        return web.json_response(atlas.status)

    async def read(self, request: web.Request) -> web.StreamResponse:
        atlas = self._atlas(request)
        wanted = parsed(ReadRequest, await request.read())
        return web.json_response(await self.worker.do(lambda _: atlas.read(wanted)))

    async def steer(self, request: web.Request) -> web.StreamResponse:
        atlas = self._atlas(request)
        wanted = parsed(SteerRequest, await request.read())
        return web.json_response(await self.worker.do(lambda check: atlas.steer(wanted, check)))

    async def ask(self, request: web.Request) -> web.StreamResponse:
        atlas = self._atlas(request)
        wanted = parsed(AskRequest, await request.read())
        return web.json_response(await self.worker.do(lambda check: atlas.ask(wanted, check)))

    async def lens(self, request: web.Request) -> web.StreamResponse:
        atlas = self._atlas(request)
        wanted = parsed(LensRequest, await request.read())
        return web.json_response(await self.worker.do(lambda _: atlas.lens(wanted)))

    async def ask_state(self, request: web.Request) -> web.StreamResponse:
        atlas = self._atlas(request)
        wanted = parsed(AskStateRequest, await request.read())
        found = await self.worker.do(lambda check: atlas.ask_state(wanted, check))
        return web.json_response(found)

    async def write(self, request: web.Request) -> web.StreamResponse:
        atlas = self._atlas(request)
        wanted = parsed(WriteRequest, await request.read())
        return web.json_response(await self.worker.do(lambda check: atlas.write(wanted, check)))

    async def save(self, request: web.Request) -> web.StreamResponse:
        atlas = self._atlas(request)
        wanted = parsed(SaveRequest, await request.read())
        return web.json_response(await self.worker.do(lambda _: atlas.save(wanted)))

    async def open(self, request: web.Request) -> web.StreamResponse:
        atlas = self._atlas(request)
        wanted = parsed(OpenRequest, await request.read())
        return web.json_response(await self.worker.do(lambda _: atlas.open(wanted)))

    async def presets(self, request: web.Request) -> web.StreamResponse:
        atlas = self._atlas(request)
        return web.json_response(await self.worker.do(lambda _: atlas.presets()))

    async def label(self, request: web.Request) -> web.StreamResponse:
        atlas = self._atlas(request)
        wanted = parsed(LabelRequest, await request.read())
        async with self.labelling:
            label = await asyncio.to_thread(atlas.label, wanted)
        return web.json_response({"label": label})


def _address(name: str) -> str:
    return f"/atlas/{quote(name, safe='')}/"


def _own_file(root: Path, *parts: str) -> Path:
    """Return the regular file at `parts` below `root`, if no link is on the way to it."""
    for part in parts:
        if not part or part.startswith(".") or any(c in part for c in "/\\\0"):
            raise web.HTTPNotFound
    path = root.joinpath(*parts)
    with _found():
        if path.suffix in _TYPES and path.is_file() and path.resolve() == path:
            return path
    raise web.HTTPNotFound


@contextmanager
def _found() -> Iterator[None]:
    """Turn what the system has against a path into: not found.

    The name may be too long or no name at all, the file forbidden, or just being replaced.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        raise web.HTTPNotFound from error


async def _file_response(
    request: web.Request, path: Path, *, live: bool = False
) -> web.StreamResponse:
    """Return the file, or word that what the browser has is still right.

    If `live`, the page is told that it can ask this server to compute.
    """
    with _found():
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
    with _found():
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
    try:
        since = request.if_modified_since
    except (ValueError, OverflowError):
        # No date that there is.
        return False
    return since is not None and modified is not None and modified <= since


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
