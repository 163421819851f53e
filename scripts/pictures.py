r"""Make the pictures of the README and of `docs/` from a finished demo.

    python scripts/pictures.py runs/demo --feature 2164 --dials 704 750 \
        --question "Tell me about your friend."

Writes `pareto.png`, `atlas.png`, `feature.png` and `desk.png` into `docs/images`, or wherever
`--out` says. Wants Chromium, and Playwright, which `make test` installs.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from sae.base import read_json

SIZE: ViewportSize = {"width": 1440, "height": 880}
IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"


def main(words: list[str]) -> None:
    """Take them of the dictionary that the demo recommends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the demo")
    parser.add_argument("--feature", type=int, default=0, help="the one to show")
    parser.add_argument("--dials", type=int, nargs="+", default=[0, 1], help="features to turn")
    parser.add_argument("--text", default="I went for a walk and", help="to go on with")
    parser.add_argument("--question", help="to be answered instead")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder of the pictures")
    asked = parser.parse_args(words)
    asked.out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(asked.run / "pareto.png", asked.out / "pareto.png")
    recommended = read_json(asked.run / "pareto.json")["recommended"]
    page = (asked.run / "atlas" / recommended / "index.html").resolve().as_uri()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for name, address in (("atlas", page), ("feature", f"{page}#f={asked.feature}")):
            shown = browser.new_page(viewport=SIZE)
            shown.goto(address)
            # The map draws itself, labels last.
            shown.wait_for_timeout(1500)
            shown.screenshot(path=str(asked.out / f"{name}.png"))
        with _served(asked.run) as address:
            page = f"{address}atlas/{recommended}/"
            shown = _desk(browser, page, asked.dials)
            if asked.question is not None:
                shown.locator("#desk-kind").select_option("chat")
            _answered(shown, asked.question or asked.text, asked.out / "desk.png")
        browser.close()


@contextmanager
def _served(run: Path) -> Iterator[str]:
    """Serve the run meanwhile, and give the address."""
    words = [str(Path(sys.executable).with_name("sae")), "serve", str(run), "port=0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            said = (re.search(r"at (http://\S+/)", line) for line in server.stderr)
            yield next(found[1] for found in said if found)
        finally:
            server.terminate()


def _desk(browser: Browser, address: str, dials: list[int]) -> Page:
    """Turn dials on the page of an atlas."""
    # Chromium cuts off what is higher than the page that it shows.
    shown = browser.new_page(viewport=SIZE | {"height": 1400})
    shown.goto(address)
    for feature in dials:
        shown.fill("#dial-number", str(feature))
        shown.keyboard.press("Enter")
    return shown


def _answered(shown: Page, text: str, out: Path) -> None:
    """Let the model write, and take the picture of it."""
    shown.fill("#desk-text", text)
    shown.click("#desk-button")
    shown.wait_for_selector("#desk-written article", timeout=300_000)
    # The bar at the top goes along while the browser scrolls, and would lie over it.
    shown.add_style_tag(content=".topbar { display: none } #desk { padding-bottom: 1rem }")
    shown.wait_for_timeout(500)
    shown.locator("#desk").screenshot(path=str(out))


if __name__ == "__main__":
    main(sys.argv[1:])
