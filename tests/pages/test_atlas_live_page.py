"""The atlas's page when somebody serves it: reading, steering, renaming."""

import json
import math
import re
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from support.atlas_samples import sample_dial
from support.browser import (
    Visit,
    at,
    needs_browser,
    rows,
    type_search,
    until,
)
from support.server import serving

import sae

pytestmark = needs_browser


# --- live


def said(tokens: list[str], relevancy: list[float]) -> dict[str, Any]:
    likeliest = [[" <i>God</i>", 0.5], ["\n", 0.25]]
    return {"tokens": tokens, "relevancy": relevancy, "norm": 1.0, "likeliest": likeliest}


def lens_layers(tokens: list[str]) -> list[dict[str, Any]]:
    """Three layers, the last of which is the model itself."""
    top = [[f" <b>{i}</b>", 0.5 - 0.0625 * i] for i in range(5)]
    return [
        {
            "name": name,
            "layer": i - 1,
            "cells": [[top, 2.0 - i, 3 - i, -1.5, " own"]] * len(tokens),
        }
        for i, name in enumerate(("embedding", "block 0", "block 1"))
    ]


class FakeServer(SimpleHTTPRequestHandler):
    """The site's files, and answers in the form of the real server's."""

    asked: list[tuple[str, dict[str, Any]]]
    dial: dict[str, str]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.endswith("/api/status"):
            return self.answer({"model": "ready", "why": "", **self.dial})
        if self.path.endswith("/api/presets"):
            dials = [{"feature": 20, "strength": 3, "do": "set"}]
            found = [{"name": "calm.yaml", "dials": dials}, {"name": "x.json", "why": "no"}]
            return self.answer({"presets": found})
        if self.path == "/index.html":
            page = Path(self.directory, "index.html").read_text("utf-8")
            page = page.replace('<html lang="en">', '<html lang="en" data-live>')
            return self.answer(page.encode(), kind="text/html")
        return super().do_GET()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = self.path.rpartition("/")[2]
        self.asked.append((name, body))
        if len(body.get("text", "")) > 200:
            return self.answer({"error": "The text has 300 tokens, the model reads 128."}, 400)
        text = body.get("text", "")
        tokens = re.findall(r"\s*\S+", text)
        arm = {"text": f"{text} and so <b>on</b>", "perplexity": 9.5}
        return self.answer(
            {
                "read": {
                    "tokens": tokens,
                    "features": [[[12, 3.0 + i], [20, 1.0]] for i in range(len(tokens))],
                },
                "steer": {
                    "prompt": text,
                    "plain": arm,
                    "steered": arm | {"perplexity": 20.25},
                    "random": arm,
                    "norm": 12.5,
                },
                "label": {"label": body.get("label") or "automatic again"},
                "write": {
                    "prompt": text,
                    "chat": body.get("chat"),
                    "plain": " and so <b>on</b>",
                    "edited": " and turned",
                    "random": " and other",
                    "others": [{"feature": 30, "strength": 1, "do": "add"}],
                },
                "ask": {
                    "prompt": body.get("prompt") or "cat -> cat\n? ->",
                    "placeholder": "?",
                    "into": "blocks.3.hook_resid_post",
                    "plain": said([" ?", "\n"], [0, 0]),
                    "scales": [
                        {
                            "scale": scale,
                            "feature": said([" <b>cat</b>", " " + "long" * 40], [0.5, 1]),
                            "random": said([], []),
                        }
                        for scale in (0.5, 1, 2, 4)
                    ],
                },
                "lens": {
                    "n_tokens": 90 if len(text) > 100 else len(tokens),
                    "tokens": tokens[:64],
                    "kinds": [{"title": "Logit lens", "layers": lens_layers(tokens[:64])}],
                },
                "ask_state": {
                    "prompt": body.get("prompt") or "cat -> cat\n? ->",
                    "placeholder": "?",
                    "into": "blocks.9.hook_resid_post",
                    "plain": said([" ?"], [0]),
                    "scales": [
                        {
                            "scale": None,
                            "state": said([" <b>cat</b>", " " + "long" * 40], [0.5, 1]),
                            "random": said([], []),
                            "other position": said([" mill"], [0.75]),
                        }
                    ],
                },
                "save": {"file": json.dumps(body)},
                "open": {"dials": [{"feature": 20, "strength": 6.5, "do": "set"}]},
            }[name]
        )

    def answer(
        self, body: dict[str, Any] | bytes, status: int = 200, kind: str = "application/json"
    ) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class PatientServer(ThreadingHTTPServer):
    request_queue_size = 64


@pytest.fixture
def served(site: Path) -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    FakeServer.asked, FakeServer.dial = [], {}
    handler = partial(FakeServer, directory=str(site.parent))
    with PatientServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html", FakeServer.asked
        server.shutdown()


@pytest.mark.slow
def test_a_text_is_read_token_by_token(served: Any, visit: Visit) -> None:
    address, asked = served
    page = visit(address)
    page.fill("#text", "a cat sat")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#read-tokens [data-place]")
    assert asked == [("read", {"text": "a cat sat"})]
    assert page.locator("#read-tokens [data-place]").all_text_contents() == [
        "a",
        " cat",
        " sat",
    ]
    page.locator("#read-tokens [data-place]").nth(1).click()
    links = page.locator("#token-features a")
    assert [link.get_attribute("href") for link in links.all()] == ["#f=12", "#f=20"]
    assert page.locator("#steer-form").is_hidden()
    links.first.click()
    at(page, "#f=12")
    # Text and reading stay; it is now shaded by the feature of the page.
    assert page.input_value("#text") == "a cat sat"
    assert page.locator("#k-box").is_hidden()
    assert page.inner_text("#shaded-by").endswith("(feature 12).")
    assert page.locator("#read-tokens [data-place]").nth(2).get_attribute("data-tip") == "5"


@pytest.mark.slow
def test_of_a_topk_dictionary_sparsity_is_a_dial(served: Any, visit: Visit) -> None:
    address, asked = served
    FakeServer.dial = {"k": "32"}
    page = visit(address)
    page.wait_for_selector("#k-box:not([hidden])")
    assert page.input_value("#k") == "32"
    page.fill("#k", "8")
    page.fill("#text", "a cat sat")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#read-tokens [data-place]")
    # A reading that is there follows the dial.
    page.fill("#k", "4")
    page.keyboard.press("Tab")
    until(page, "() => !document.querySelector('#read-button').disabled")
    assert [body["k"] for _, body in asked] == [8, 4]


@pytest.mark.slow
def test_the_dial_steers(served: Any, visit: Visit) -> None:
    address, asked = served
    page = visit(address, "#f=12")
    page.fill("#text", "a cat")
    page.locator("#dial").focus()
    page.keyboard.press("Home")
    assert page.inner_text("#dial-value") == "−4 × its strongest activation"
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    assert page.url.endswith("#f=12")
    page.click("#steer-button")
    page.wait_for_selector("#written article")
    settings = {"max_new_tokens": 32, "temperature": 0.7, "seed": 0}
    assert asked == [("steer", {"text": "a cat", "feature": 12, "strength": -3, **settings})]
    arms = page.locator("#written article").all_inner_texts()
    assert len(arms) == 3
    assert "and so <b>on</b>" in arms[1]
    assert "perplexity 20.3" in arms[1]
    assert "length 12.5" in arms[1]


@pytest.mark.slow
def test_a_dial_starts_at_the_recommended_dose_and_says_what_it_costs(
    served: Any, visit: Visit
) -> None:
    address, asked = served
    page = visit(address, "#f=12")
    dial = sample_dial(12)
    page.wait_for_selector("#dial-cost button")
    dose = float(f"{dial['dial_strength']:.3g}")
    start = f"+{dose:g} × its strongest activation"
    assert page.inner_text("#dial-value") == start
    assert abs(float(page.input_value("#dial")) - dose) <= 0.025
    said = page.inner_text("#dial-cost")
    assert f"+{dose:g} × costs about {dial['dial_kl']:.2g} nats a token on neutral text" in said
    told = r"makes its tokens ([\d.]+) × as likely; .* make them ([\d.]+) × as likely at most"
    factors = [float(factor) for factor in re.search(told, said).groups()]
    expected = [math.exp(dial[name]) for name in ("dial_score", "dial_score_null")]
    assert factors == pytest.approx(expected, rel=0.01)
    page.locator("#dial").focus()
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#dial-value") != start
    page.click("#dial-cost button")
    assert page.inner_text("#dial-value") == start
    page.click("#steer-button")
    page.wait_for_selector("#written article")
    assert asked[0][1]["strength"] == dose
    # Feature 3 was not scored, so its dial stands where the last one was moved to.
    left = page.evaluate("remembered.get('dial')")
    page.evaluate("location.hash = 'f=3'")
    at(page, "#f=3")
    assert page.inner_text("#dial-value") == f"+{left} × its strongest activation"
    assert page.locator("#dial-cost").is_hidden()


@pytest.mark.slow
def test_several_dials_are_turned_saved_and_opened(
    served: Any, visit: Visit, tmp_path: Path
) -> None:
    address, asked = served
    page = visit(address)
    assert page.locator("#desk-button").is_disabled()
    page.fill("#dial-number", "12")
    page.keyboard.press("Enter")
    page.locator("#dials li").first.wait_for()
    # The dial of a feature's own page is put beside it as it stands.
    page.evaluate("location.hash = 'f=20'")
    page.wait_for_selector("#steer-form:not([hidden])")
    page.locator("#dial").focus()
    page.keyboard.press("Home")
    page.click("#to-desk")
    assert page.locator("#dials li").count() == 2
    page.locator("#dials select").first.select_option("set")
    page.fill("#desk-text", "a cat")
    page.locator("#desk-kind").select_option("chat")
    page.keyboard.press("Tab")
    page.locator("#desk-text").press("Control+Enter")
    page.wait_for_selector("#desk-written article")
    settings = {"max_new_tokens": 64, "temperature": 0.7, "seed": 0}
    dials = [
        # Each number to three digits, as the page has it.
        {
            "feature": 12,
            "strength": float(f"{sample_dial(12)['dial_strength']:.3g}"),
            "do": "set",
        },
        {"feature": 20, "strength": -4, "do": "add"},
    ]
    assert asked == [("write", {"text": "a cat", "dials": dials, "chat": True, **settings})]
    arms = page.locator("#desk-written article").all_inner_texts()
    assert len(arms) == 3
    assert "and so <b>on</b>" in arms[0]
    assert "With 2 dials turned" in arms[1]
    with page.expect_download() as download:
        page.click("#save-edits")
    assert json.loads(Path(download.value.path()).read_text()) == {"dials": dials}
    assert download.value.suggested_filename == "edits.yaml"
    (tmp_path / "mine.yaml").write_text("edits: []")
    page.set_input_files("#open-edits", str(tmp_path / "mine.yaml"))
    until(page, "desk.dials.length === 1")
    assert asked[-1] == ("open", {"text": "edits: []"})
    assert page.inner_text("#dials output") == "6.5 × its strongest"
    # A file of the run that holds no dials of this dictionary cannot be chosen.
    presets = page.locator("#presets")
    assert presets.locator("option").all_inner_texts() == [
        "Presets",
        "calm.yaml",
        "x.json (not for this page)",
    ]
    assert presets.locator("option").last.is_disabled()
    presets.select_option("calm.yaml")
    assert page.inner_text("#dials output") == "3 × its strongest"
    assert page.inner_text("#edits-status") == "calm.yaml is open, with one dial."
    page.set_input_files("#open-edits", str(tmp_path / "mine.yaml"))
    until(page, "desk.dials[0].strength === 6.5")
    # They are there again when the page is.
    page.reload()
    page.locator("#dials li").first.wait_for()
    assert page.inner_text("#dials output") == "6.5 × its strongest"
    page.locator("#dials button").click()
    assert page.locator("#dials li").count() == 0
    assert page.locator("#desk-button").is_disabled()


@pytest.mark.slow
def test_the_model_is_asked_what_a_feature_is(served: Any, visit: Visit) -> None:
    address, asked = served
    page = visit(address, "#f=12", viewport={"width": 420, "height": 900})
    page.wait_for_selector("#ask-button:not([disabled])")
    page.click("#ask-button")
    page.wait_for_selector("#ask-answers table")
    settings = {"placeholder": "?", "max_new_tokens": 16}
    assert asked == [("ask", {"feature": 12, "prompt": "", **settings})]
    rows = page.locator("#ask-answers tbody tr")
    assert rows.count() == 5
    # What the model writes is text, whatever it looks like.
    assert page.locator("#ask-answers").locator("b, i").count() == 0
    first = rows.nth(1).locator("small").first.inner_text()
    assert first.split() == ["·<i>God</i>", "50%", "↵", "25%"]
    assert "<b>cat</b>" in rows.nth(1).inner_text()
    assert "It ends the text at once." in rows.nth(1).inner_text()
    assert "↵" in rows.nth(0).inner_text()
    assert "cat -> cat↵? ->" in page.inner_text("#ask-answers .note")
    tokens = rows.nth(1).locator("td").first.locator("[data-tip]")
    shades = [token.get_attribute("style") for token in tokens.all()]
    assert shades == ["--a: 0.500;", "--a: 1.000;"]
    tokens.first.hover()
    assert "probability moved by 0.5" in page.inner_text("#tip")
    wide = "document.documentElement.scrollWidth"
    assert page.evaluate(wide) <= 420
    # Another feature has not been asked about.
    page.evaluate("location.hash = 'f=20'")
    at(page, "#f=20")
    assert page.locator("#ask-answers table").count() == 0
    page.locator("#ask summary").click()
    page.fill("#ask-prompt", "The word ? means")
    page.click("#ask-button")
    page.wait_for_selector("#ask-answers table")
    assert asked[-1] == ("ask", {"feature": 20, "prompt": "The word ? means", **settings})
    assert page.evaluate(wide) <= 420
    # Another feature's answer is not shown on a page that went on meanwhile.
    page.click("#ask-button")
    page.evaluate("location.hash = 'f=12'")
    at(page, "#f=12")
    until(page, "!$('ask-button').disabled")
    assert page.locator("#ask-answers table").count() == 0


def read_here(page: Any, text: str) -> Any:
    """Have a text read; return its tokens on the page."""
    until(page, "live.ready")
    page.fill("#text", text)
    page.click("#read-button")
    until(page, f"live.answer?.text === {json.dumps(text)}")
    return page.locator("#read-tokens [data-place]")


@pytest.mark.slow
@pytest.mark.parametrize("width", [420, 1280])
def test_the_lens_of_a_text_has_a_column_a_token_and_a_row_a_block(
    served: Any, visit: Visit, width: int
) -> None:
    address, asked = served
    page = visit(address, viewport={"width": width, "height": 900})
    wide = "document.documentElement.scrollWidth"
    tokens = read_here(page, "a <i>cat</i> sat")
    assert page.locator("#lens").is_hidden()
    # What was read is shown, whatever is being typed meanwhile.
    page.fill("#text", "another")
    page.click("#lens-button")
    page.wait_for_selector("#lens-table td")
    assert asked[-1] == ("lens", {"text": "a <i>cat</i> sat"})
    lines = page.locator("#lens-table tbody tr")
    assert lines.locator("th").all_inner_texts() == ["block 1", "block 0", "embedding"]
    names = page.locator("#lens-table thead th")
    assert names.all_inner_texts() == ["after", "a", "·<i>cat</i>", "·sat"]
    assert page.locator("#lens-table td").count() == 9
    assert lines.first.locator("td.same").count() == 3
    assert page.locator("#lens-table").locator("b, i").count() == 0
    assert page.locator("#lens-cut").is_hidden()
    lines.last.locator("td").nth(1).hover()
    told = page.inner_text("#tip")
    for part in ("embedding, after", "<i>cat</i>", "50.0%", "25.0%", "<b>4</b>", "KL 2 nats"):
        assert part in told
    lines.first.locator("td").first.focus()
    page.keyboard.press("ArrowRight")
    assert "block 1, after" in page.inner_text("#tip")
    # The token that is chosen is marked over its column.
    tokens.nth(2).click()
    assert names.locator("xpath=self::*[@aria-current]").all_inner_texts() == ["·sat"]
    assert page.evaluate(wide) <= width
    # A longer one is cut, which is said, and scrolls in its own box.
    read_here(page, "a cat sat " * 19)
    assert page.locator("#lens").is_hidden()
    page.click("#lens-button")
    page.wait_for_selector("#lens-table td")
    assert page.inner_text("#lens-cut") == "The text has 90 tokens; these are the first 57."
    assert page.evaluate("$('lens-box').scrollWidth > $('lens-box').clientWidth")
    assert page.evaluate(wide) <= width


@pytest.mark.slow
def test_the_model_is_asked_what_it_holds_at_a_token(served: Any, visit: Visit) -> None:
    address, asked = served
    page = visit(address, viewport={"width": 420, "height": 900})
    tokens = read_here(page, "the <i>old</i> mill")
    assert page.locator("#state").is_hidden()
    tokens.nth(1).click()
    assert page.inner_text("#state-title") == "Ask the model what it holds at ·<i>old</i>"
    page.click("#state-button")
    page.wait_for_selector("#state-answers table")
    settings = {"prompt": "", "placeholder": "?", "max_new_tokens": 16}
    body = {"text": "the <i>old</i> mill", "position": 1, **settings}
    assert asked[-1] == ("ask_state", body)
    rows = page.locator("#state-answers tbody tr")
    assert rows.count() == 2
    assert rows.nth(1).locator("th").inner_text() == "1"
    titles = rows.nth(1).locator("td").evaluate_all("all => all.map(e => e.dataset.of)")
    assert titles == [
        "This token's state",
        "A random vector, as long",
        "Another token's state, as long",
    ]
    assert "At blocks.9.hook_resid_post the state stands" in page.inner_text("#state-answers")
    assert "<b>cat</b>" in rows.nth(1).locator("td").first.inner_text()
    assert page.locator("#state-answers").locator("b, i").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    # Of another token nothing has been asked, and no late answer is shown.
    tokens.nth(2).click()
    assert page.locator("#state-answers table").count() == 0
    page.click("#state-button")
    tokens.nth(0).click()
    until(page, "!$('state-button').disabled")
    assert page.locator("#state-answers table").count() == 0
    read_here(page, "another text")
    assert page.locator("#state").is_hidden()


@pytest.mark.slow
def test_a_text_that_no_lens_can_read_is_refused_in_a_sentence(
    served: Any, visit: Visit
) -> None:
    page = visit(served[0], loud=False)
    read_here(page, "a cat")
    page.evaluate("live.answer = {...live.answer, text: 'word '.repeat(60)}")
    page.click("#lens-button")
    page.wait_for_selector("#lens-status.trouble")
    said = page.inner_text("#lens-status")
    assert said == "The text has 300 tokens, the model reads 128."
    assert page.locator("#lens").is_hidden()
    page.locator("#read-tokens [data-place]").first.click()
    page.click("#state-button")
    page.wait_for_selector("#state-status.trouble")
    assert page.locator("#state-answers table").count() == 0


@pytest.mark.slow
def test_files_from_disk_ask_nobody(site: Path, visit: Visit) -> None:
    page = visit(site, "#f=12")
    at(page, "#f=12")
    assert page.locator("#ask").is_hidden()
    for name in ("lens-button", "lens", "state"):
        assert page.locator(f"#{name}").is_hidden()


@pytest.mark.slow
def test_what_the_server_refuses_is_read_as_it_says_it(served: Any, visit: Visit) -> None:
    page = visit(served[0], loud=False)
    page.fill("#text", "word " * 60)
    page.click("#read-button")
    page.wait_for_selector("#read-status.trouble")
    said = page.inner_text("#read-status")
    assert said == "The text has 300 tokens, the model reads 128."
    assert page.locator("#read-button").is_enabled()


@pytest.mark.slow
def test_a_label_is_edited_in_place(served: Any, visit: Visit) -> None:
    address, asked = served
    page = visit(address, "#f=12")
    page.get_by_role("button", name="Rename").click()
    page.keyboard.type("words about <b>cats</b>")
    page.keyboard.press("Enter")
    page.wait_for_selector(".who.hand")
    assert asked == [("label", {"feature": 12, "label": "words about <b>cats</b>"})]
    assert page.inner_text("h1#feature-title") == "words about <b>cats</b>"
    page.keyboard.press("Escape")
    type_search(page, "about <b>")
    assert rows(page) == ["words about <b>cats</b>"]
    page.keyboard.press("Enter")
    at(page, "#f=12")
    page.get_by_role("button", name="Rename").click()
    page.fill(".renaming input", "")
    page.keyboard.press("Enter")
    page.wait_for_selector(".who:not(.hand)")
    assert page.inner_text("h1#feature-title") == "automatic again"


@pytest.mark.slow
def test_a_real_atlas_is_read_and_steered_by_the_real_server(
    visit: Visit, tiny_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    shutil.rmtree(run / "dictionaries" / "weak")
    sae.analyze(run=str(run))
    with serving(run) as server:
        page = visit(f"http://127.0.0.1:{server.port}/")
        at(page, "/atlas/strong/")
        until(page, "live.ready")
        page.fill("#text", "the river ran past the old mill")
        page.click("#read-button")
        page.wait_for_selector("#read-tokens [data-place]")
        page.click("#lens-button")
        page.wait_for_selector("#lens-table td")
        n = page.locator("#read-tokens [data-place]").count()
        assert page.locator("#lens-table tbody tr").first.locator("td.same").count() == n
        page.locator("#read-tokens [data-place]").nth(2).click()
        page.locator("#state summary").click()
        page.fill("#state-prompt", "the old mill x where")
        page.fill("#state-placeholder", "x")
        page.click("#state-button")
        page.wait_for_selector("#state-answers table")
        assert page.locator("#state-answers thead th").count() == 4
        page.locator("#token-features a").first.click()
        page.wait_for_selector(".context")
        page.locator("#steer-form summary").click()
        page.fill("#length", "4")
        page.click("#steer-button")
        page.wait_for_selector("#written article")
        assert page.locator("#written .text").count() == 3
        page.get_by_role("button", name="Rename").click()
        page.keyboard.type("what the river does")
        page.keyboard.press("Enter")
        page.wait_for_selector(".who.hand")
        page.reload()
        page.wait_for_selector(".who.hand")
        assert page.inner_text("h1#feature-title") == "what the river does"
        page.context.close()
    assert "what the river does" in (run / "atlas/strong/labels.csv").read_text()
