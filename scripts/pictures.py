"""Make the pictures of the README from a finished demo.

    python scripts/pictures.py runs/demo --feature 2164

Writes `pareto.png`, `atlas.png` and `feature.png` into `docs/images`, or wherever `--out` says.
Wants Chromium, and Playwright, which `make test` installs.
"""

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from sae.base import read_json

SIZE = {"width": 1440, "height": 880}
IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"


def main(words: list[str]) -> None:
    """Take them of the dictionary that the demo recommends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the demo")
    parser.add_argument("--feature", type=int, default=0, help="the one to show")
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
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
