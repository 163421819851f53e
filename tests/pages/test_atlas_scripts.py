"""The atlas page with texts of other scripts, in a browser: direction, marks, parts, search."""

import random
from pathlib import Path
from typing import Any

import pytest
from support.atlas_samples import feature_columns, sample_record, sample_tables
from support.browser import Visit, hover_until, rows, type_search, until

from sae.atlas.labels import Labels
from sae.pages.site import write_site

ARABIC = " القطة القديمة نامت على السطح الدافئ بينما هطل المطر فوق النهر البعيد".split(" ")[1:]
TEXTS = {
    "English": [f" {word}" for word in "the old cat slept on the warm roof while".split()] * 2,
    "Arabic": [f" {word}" for word in ARABIC],
    "Chinese": [*"今天天气很好我们去公园", "", "", "龘"],
    "code": ["if", " x", " !=", " 0", ":", " y", "->", "z"],
    "Hindi": [" ह", "ि", "न्दी", " में", " नमस्ते", " दुनिया"],
    "emoji": ["family", " ", "", "👨", "\u200d", "👩", "\u200d", "👧", " done"],
}
NUMBER = {name: number for number, name in enumerate(TEXTS)}


def contexts(feature: int, tokens: list[str]) -> list[dict[str, Any]]:
    """A line for each token of a text, said twice, at which the feature fires."""
    tokens = tokens * 3
    return [
        {
            "feature": feature,
            "group": "top",
            "band": -1,
            "rank": rank,
            "sequence": rank,
            "position": peak,
            "start": 0,
            "activation": 2.0,
            "token_ids": list(range(len(tokens))),
            "tokens": tokens,
            "activations": [2.0 * (place == peak) for place in range(len(tokens))],
        }
        for rank, peak in enumerate(range(len(tokens) // 3, 2 * len(tokens) // 3))
    ]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, n = tmp_path_factory.mktemp("scripts"), len(TEXTS)
    columns = feature_columns(
        random.Random(0), [0] * n, [False] * n, hostile=False, logits=True
    )
    given = [row for name, text in TEXTS.items() for row in contexts(NUMBER[name], text)]
    labels = Labels.all_automatic([f"feature of {name}" for name in TEXTS])
    write_site(folder, *sample_tables(columns, given), sample_record(n, 0), labels, None)
    return folder / "index.html"


SEEN = """() => [...document.querySelectorAll('.context')].map((line) => {
  const place = (name) => line.querySelector(name).getBoundingClientRect();
  const [peak, box] = [place('.peak'), place('.after')];
  return peak.width > 0 && peak.left >= box.left - 1 && peak.right <= box.right + 1;
})"""


@pytest.mark.slow
def test_lines_of_every_script_read_rightly_and_show_their_peaks(
    visit: Visit, scripts: Path
) -> None:
    page = visit(scripts, "#f=0", viewport={"width": 700, "height": 900})
    page.evaluate("remembered.set('width', 'lines')")
    for name, tokens in TEXTS.items():
        page.evaluate(f"location.hash = 'f={NUMBER[name]}'")
        until(page, f"shown.feature === {NUMBER[name]}")
        until(page, f"document.querySelectorAll('.context').length === {len(tokens)}")
        lines = page.locator(".context p")
        assert set(lines.all_text_contents()) == {"".join(tokens * 3)}
        direction = "rtl" if name == "Arabic" else "ltr"
        assert lines.evaluate_all("all => all.map((p) => getComputedStyle(p).direction)") == (
            [direction] * len(tokens)
        )
        assert all(page.evaluate(SEEN)), name
        if name == "Hindi":
            # A vowel's mark stays with the letter that it is drawn on.
            halves = page.locator(".after").all_text_contents()
            assert halves[1].startswith(" हिन्दी")
        if name == "Chinese":
            part = page.locator(".part.act").first
            hover_until(page, part, "!document.querySelector('#tip').hidden")
            assert page.inner_text("#tip").splitlines()[0] == "part of “\u2068龘\u2069”"
    page.keyboard.press("Escape")
    page.evaluate(f"location.hash = 'f={NUMBER['Arabic']}'")
    until(page, f"shown.feature === {NUMBER['Arabic']}")
    # Towards the end of the text is to the left.
    order = (
        page.locator(".context")
        .nth(0)
        .locator(".after span")
        .evaluate_all("all => all.slice(0, 3).map((e) => e.getBoundingClientRect().right)")
    )
    assert order == sorted(order, reverse=True)


@pytest.mark.slow
def test_search_finds_signs_and_words_of_scripts_without_spaces(
    visit: Visit, scripts: Path
) -> None:
    page = visit(scripts)
    type_search(page, "!=")
    for typed, name in {
        "!=": "code",
        "->": "code",
        "天气": "Chinese",
        "园": "Chinese",
        "हिन्दी": "Hindi",
        "القديمة": "Arabic",
        "👨\u200d👩\u200d👧": "emoji",
        "warm": "English",
    }.items():
        page.fill("#search", typed)
        until(page, "!found.pending")
        assert rows(page) == [f"feature of {name}"], typed
    page.fill("#search", "气天")
    until(page, "!found.pending")
    assert rows(page) == []
