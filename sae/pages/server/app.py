"""The web application: what can be asked of a run, and nothing else of it can be reached."""

import asyncio
import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from aiohttp import web

from sae.pages.page import filled
from sae.pages.server.guard import add_headers, guard
from sae.pages.server.live import LiveAtlas
from sae.pages.server.requests import LabelRequest, ReadRequest, SteerRequest, parsed
from sae.pages.server.static import file_response, own_file
from sae.pages.server.worker import Worker

_MAX_BODY = 1 << 20
_REPORT = ("report.html", "pareto.png")


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
    app.router.add_get("/favicon.ico", _nothing)
    for name in _REPORT:
        app.router.add_get(f"/{name}", handlers.report)
    app.router.add_get("/atlas/{id}", handlers.moved)
    app.router.add_get("/atlas/{id}/", handlers.page)
    app.router.add_get("/atlas/{id}/data/{path:.+}", handlers.data)
    app.router.add_get("/atlas/{id}/api/status", handlers.status)
    app.router.add_post("/atlas/{id}/api/read", handlers.read)
    app.router.add_post("/atlas/{id}/api/steer", handlers.steer)
    app.router.add_post("/atlas/{id}/api/label", handlers.label)
    return app


async def _nothing(_: web.Request) -> web.StreamResponse:
    # Browsers ask for it by themselves.
    return web.Response(status=204)


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

    def _atlas(self, request: web.Request) -> LiveAtlas:
        name = request.match_info["id"]
        if name not in self.pages.atlases:
            raise web.HTTPNotFound(text=f"there is no atlas {name[:80]!r} here")
        return self.pages.atlases[name]

    def _file(self, request: web.Request, *parts: str) -> Path:
        self._atlas(request)
        return own_file(self.pages.run, "atlas", request.match_info["id"], *parts)

    async def home(self, _: web.Request) -> web.StreamResponse:
        names = list(self.pages.atlases)
        if len(names) == 1 and not self.pages.unreadable:
            raise web.HTTPFound(_address(names[0]))
        report = (self.pages.run / _REPORT[0]).is_file()
        return web.Response(text=_list(self.pages, report), content_type="text/html")

    async def report(self, request: web.Request) -> web.StreamResponse:
        return await file_response(request, own_file(self.pages.run, request.path[1:]))

    async def moved(self, request: web.Request) -> web.StreamResponse:
        self._atlas(request)
        raise web.HTTPFound(_address(request.match_info["id"]))

    async def page(self, request: web.Request) -> web.StreamResponse:
        return await file_response(request, self._file(request, "index.html"), live=True)

    async def data(self, request: web.Request) -> web.StreamResponse:
        parts = request.match_info["path"].split("/")
        if parts == ["labels.js"]:
            async with self.labelling:
                await asyncio.to_thread(self._atlas(request).refresh_labels)
        path = self._file(request, "data", *parts)
        if path.suffix != ".js":
            raise web.HTTPNotFound
        return await file_response(request, path)

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

    async def label(self, request: web.Request) -> web.StreamResponse:
        atlas = self._atlas(request)
        wanted = parsed(LabelRequest, await request.read())
        async with self.labelling:
            label = await asyncio.to_thread(atlas.label, wanted)
        return web.json_response({"label": label})


def _address(name: str) -> str:
    return f"/atlas/{quote(name, safe='')}/"


def _list(pages: Pages, report: bool) -> str:
    """A page that names the atlases of a run, and those that cannot be shown."""
    entries = [
        f'<li><a href="{_address(name)}">{html.escape(name)}</a><dl>{_figures(atlas)}</dl></li>'
        for name, atlas in pages.atlases.items()
    ]
    entries += [f"<li>{html.escape(sentence)}</li>" for sentence in pages.unreadable]
    if report:
        entries.append(f'<li><a href="/{_REPORT[0]}">the report of this run</a></li>')
    title = html.escape(pages.run.name)
    return filled("home.html", title=title, entries="\n".join(entries))


def _figures(atlas: LiveAtlas) -> str:
    return "".join(
        f"<div><dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd></div>"
        for key, value in atlas.figures.items()
    )
