"""A real browser for the atlas's page, which minds what a page must not do."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.atlas_samples import sample_pareto, write_sample

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

Visit = Callable[..., Any]


@pytest.fixture(name="browser", scope="module")
def browser_fixture() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(name="visit")
def visit_fixture(browser: Any) -> Iterator[Visit]:
    """Opens an address; in the end no page may have complained or asked any other host."""
    contexts, wrong, asked = [], [], []

    def open_page(address: Path | str, mark: str = "", **options: Any) -> Any:
        options = {"viewport": {"width": 1280, "height": 900}, **options}
        loud = options.pop("loud", True)
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        if loud:
            page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((address.as_uri() if isinstance(address, Path) else address) + mark)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []
    allowed = re.compile(r"file://|data:|http://127\.0\.0\.1:\d+/")
    assert [url for url in asked if not allowed.match(url)] == []


@pytest.fixture(name="site", scope="module")
def site_fixture(tmp_path_factory: Any) -> Path:
    return write_sample(tmp_path_factory.mktemp("site"), 200, pareto=sample_pareto())


def rows(page: Any) -> list[str]:
    return page.locator("#rows .name").all_inner_texts()


def until(page: Any, what: str) -> None:
    """Wait for a condition; the page's own policy forbids Playwright to wait inside it."""
    ends = time.monotonic() + 10
    while not page.evaluate(what):
        assert time.monotonic() < ends, f"it never came about that {what}"
        page.wait_for_timeout(15)


def hover_until(page: Any, place: Any, what: str) -> None:
    """Point at a place until a condition holds: it may move away under a still mouse."""
    ends = time.monotonic() + 10
    while not page.evaluate(what):
        assert time.monotonic() < ends, f"pointing there never made it come about that {what}"
        place.scroll_into_view_if_needed()
        box = place.bounding_box()
        # A tip comes when the mouse enters, so a second try must first leave.
        page.mouse.move(0, 0)
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_timeout(50)


def at(page: Any, mark: str) -> None:
    """Wait until the address ends so, and what it is of is shown."""
    until(page, f"location.href.endsWith({json.dumps(mark)})")
    view = {"f": "feature", "q": "search"}.get(mark[1], "home")
    until(page, f"document.body.dataset.view === '{view}'")
    if view == "feature":
        until(page, f"shown.feature === {mark[3:]}")


def type_search(page: Any, text: str) -> None:
    page.keyboard.press("/")
    page.keyboard.type(text)
