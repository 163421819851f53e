"""Hook of the documentation site (`mkdocs.yml`): the finished pages are read for dead links.

MkDocs checks the links of Markdown. This reads what browsers get, which is also what the theme,
the notebooks and the reference made of docstrings have put there. A link to a file or an anchor
that is not in the site ends the build, and so does anything that a browser would fetch from
another host to show a page.
"""

import functools
import posixpath
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

_FETCHED = {"script", "img", "iframe", "source", "audio", "video", "embed", "object"}
_LINKED = {"href", "src", "data", "srcset", "poster"}
# What a `<link>` only says about the page, and is not fetched for it.
_SAID = {"canonical", "next", "prev", "alternate", "author", "license"}
_STYLE_ADDRESS = re.compile(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")\s]+)")
_SHOWN = 20


class _Page(HTMLParser):
    """What a page of HTML has and refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors = {"", "top"}
        self.links: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.anchors |= {given.get("id", ""), given.get("name", "") if tag == "a" else ""}
        self.fetched += _STYLE_ADDRESS.findall(given.get("style", ""))
        for key in _LINKED & given.keys():
            address = urlsplit(given[key])
            if not (address.scheme or address.netloc):
                self.links.append(given[key])
            elif address.scheme in ("", "http", "https") and _is_fetched(tag, given):
                self.fetched.append(given[key])


def _is_fetched(tag: str, given: dict[str, str]) -> bool:
    if tag == "link":
        return given.get("rel") not in _SAID
    return tag in _FETCHED


@functools.cache
def _read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def wrong_links(site: Path) -> Iterator[str]:
    """Yield a line for each dead link of a site, and for each thing that is on another host."""
    for path in sorted(site.rglob("*.html")):
        name = path.relative_to(site).as_posix()
        page = _read(path)
        for address in page.fetched:
            yield f"{name} is shown with {address}, which is on another host"
        for link in dict.fromkeys(page.links):
            parts = urlsplit(link)
            target = _target(site, name, unquote(parts.path))
            if not target.exists():
                yield f"{name} links to {link}, and there is no such file"
            elif target.suffix == ".html" and unquote(parts.fragment) not in _anchors(target):
                yield f"{name} links to {link}, and the page has no such anchor"
    for path in sorted(site.rglob("*.css")):
        for address in _STYLE_ADDRESS.findall(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(site)} asks for {address}, which is on another host"


def _target(site: Path, name: str, link: str) -> Path:
    """Return the file that a link of a page leads to."""
    if link.startswith("/"):
        # The page of what is not there links from the server's root.
        found = site / link.lstrip("/")
    else:
        found = site / posixpath.normpath(posixpath.join(posixpath.dirname(name), link))
        found = found if link else site / name
    return found / "index.html" if found.is_dir() else found


def _anchors(path: Path) -> set[str]:
    return _read(path).anchors


def on_startup(command: Literal["build", "gh-deploy", "serve"], dirty: bool) -> None:
    """Note whether somebody is writing, for whom every page is made anew at every change."""
    _read.cache_clear()
    _writing.clear()
    if command == "serve":
        _writing.append(True)


_writing: list[bool] = []


def on_post_build(config: MkDocsConfig) -> None:
    """End the build if a link leads nowhere.

    Raises:
        PluginError: with a line for each such link.
    """
    if _writing:
        return
    wrong = list(wrong_links(Path(config.site_dir)))
    if wrong:
        more = f"\nand {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise PluginError("\n" + "\n".join(wrong[:_SHOWN]) + more)
