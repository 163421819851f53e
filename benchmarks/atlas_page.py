"""How fast the atlas's page is in a browser: opened from disk, and searched while typing."""

import shutil
import statistics
from pathlib import Path
from typing import Any

from benchmarks.atlas import RUN, TRAINED
from benchmarks.common import write_results

OPENINGS = 5
QUERIES = ("reason", "the", "court judge", "q", "http", "president obama", "1999", "zzz")


def _opened(browser: Any, index: Path) -> tuple[float, float]:
    """Seconds to the first paint, and until everything can be used, in a fresh profile."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.goto(index.as_uri())
    page.wait_for_timeout(3000)
    paint, ready = page.evaluate(
        "[performance.getEntriesByName('first-contentful-paint')[0].startTime,"
        " performance.getEntriesByName('ready')[0].startTime]"
    )
    context.close()
    return paint / 1000, ready / 1000


_TYPE = """async (query) => {
  const box = document.getElementById("search"), spent = [];
  const frame = () => new Promise(requestAnimationFrame);
  for (let i = 1; i <= query.length; i++) {
    const began = performance.now();
    box.value = query.slice(0, i);
    box.dispatchEvent(new Event("input", { bubbles: true }));
    do await frame(); while (found.pending);
    await frame();
    spent.push(performance.now() - began);
  }
  return spent;
}"""


def _searched(browser: Any, index: Path) -> list[float]:
    """Milliseconds from each letter until all of its results are shown, files included."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.goto(index.as_uri())
    page.wait_for_timeout(3000)
    found = [spent for query in QUERIES for spent in page.evaluate(_TYPE, query)]
    context.close()
    return found


def main() -> None:
    """Write `results/atlas_page.md`, from the atlases that `benchmarks.atlas` made."""
    from playwright.sync_api import sync_playwright

    rows = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for name in TRAINED:
            index = (RUN / "atlas" / name / "index.html").resolve()
            opened = [_opened(browser, index) for _ in range(OPENINGS)]
            searches = _searched(browser, index)
            rows.append(
                {
                    "dictionary": name,
                    "first paint (s)": round(statistics.median(p for p, _ in opened), 2),
                    "ready (s)": round(statistics.median(r for _, r in opened), 2),
                    "letters typed": len(searches),
                    "search, median (ms)": round(statistics.median(searches), 1),
                    "search, slowest (ms)": round(max(searches), 1),
                }
            )
        browser.close()
    write_results("atlas_page", "The page of 16,384 features, from disk, in Chromium", rows)


if __name__ == "__main__":
    main()
