"""The page of a lens, in a browser: cells, tips, the switch, keys, hostile text."""

from pathlib import Path
from typing import Any

import pytest
from support.atlas_samples import HOSTILE
from support.browser import Visit, needs_browser

from sae.lenses import LENS
from sae.pages.lens import Lens

pytestmark = needs_browser

LAYERS = [-1, 0, 1]


def sample_lens(tokens: list[str], *, tuned: bool = True) -> Lens:
    """A lens of three layers whose first choice is the model's own from layer 0 on."""
    columns: dict[str, list[object]] = {name: [] for name in LENS.columns}
    for kind in ("logit", "tuned")[: 1 + tuned]:
        for layer in LAYERS if kind == "logit" else LAYERS[1:]:
            for position, token in enumerate(tokens):
                share = 0.25 + 0.25 * (layer + 1)
                own = layer >= 0
                columns["kind"].append(kind)
                columns["layer"].append(layer)
                columns["hook_name"].append(f"blocks.{max(0, layer)}.hook")
                columns["position"].append(position)
                columns["token"].append(token)
                columns["top_ids"].append([1, 2])
                columns["top_tokens"].append([f" {kind}{layer}", "other"])
                columns["top_probabilities"].append([share, 0.125])
                columns["kl"].append(1.0 - layer)
                columns["own_token"].append(" own" if not own else f" {kind}{layer}")
                columns["own_rank"].append(1 if own else 4_321)
                columns["own_log_probability"].append(-1.5)
    figures = {"kl": {"mean": 2.0, "low": 1.5, "high": 2.5}, "agreement": 0.25}
    judged = {
        "n_held_out_rows": 1_234,
        "floor": figures,
        "layers": [{"layer": 0, "hook_name": "h", "logit": figures, "tuned": figures}],
    }
    return Lens(LENS.table(columns), "maker/model", "".join(tokens), judged if tuned else None)


@pytest.fixture(name="shown")
def shown_fixture(visit: Visit, tmp_path: Path) -> Visit:
    """Opens the page of a lens."""

    def show(lens: Lens, **options: Any) -> Any:
        (tmp_path / "index.html").write_text(lens.page(), "utf-8")
        return visit(tmp_path / "index.html", **options)

    return show


def test_every_layer_and_position_has_a_cell_with_its_likeliest_token(shown: Visit) -> None:
    page = shown(sample_lens(["The", " cat", " sat"]))
    lines = page.locator("#grid tbody tr")
    assert lines.locator("th").all_inner_texts() == ["block 1", "block 0", "embedding"]
    assert page.locator("#grid td").count() == 9
    assert lines.first.locator("td").all_inner_texts() == ["·logit1"] * 3
    tokens = page.locator("#grid thead th").all_inner_texts()
    assert tokens == ["after", "The", "·cat", "·sat"]
    assert page.locator("#text").inner_text() == "The cat sat"
    assert page.locator("#grid td.same").count() == 6


def test_the_surer_a_lens_is_the_darker_is_its_cell(shown: Visit) -> None:
    page = shown(sample_lens(["a"]))
    cells = page.locator("#grid td")
    shades = [cells.nth(i).evaluate("e => getComputedStyle(e).backgroundColor") for i in (0, 2)]
    assert shades[0] != shades[1]
    shares = [cells.nth(i).evaluate("e => e.style.getPropertyValue('--p')") for i in range(3)]
    assert shares == ["0.750", "0.500", "0.250"]


def test_a_cell_tells_its_first_tokens_kl_and_where_the_models_own_stands(shown: Visit) -> None:
    page = shown(sample_lens(["The", " cat"]))
    page.locator("#grid tbody tr").last.locator("td").nth(1).hover()
    told = page.locator("#tip").inner_text()
    for part in ("embedding, after", " cat", "25.0%", "12.5%", "other", "KL 2 nats"):
        assert part in told
    assert "rank 4,321, 22.3%" in told
    page.locator("#grid td").first.hover()
    assert "what the model itself predicts is first here" in page.locator("#tip").inner_text()


def test_the_switch_shows_the_other_lens(shown: Visit) -> None:
    page = shown(sample_lens(["The", " cat"]))
    assert page.locator("#kinds [aria-pressed=true]").inner_text() == "Logit lens"
    page.get_by_role("button", name="Tuned lens").click()
    assert page.locator("#kinds [aria-pressed=true]").inner_text() == "Tuned lens"
    assert page.locator("#grid tbody th").all_inner_texts() == ["block 1", "block 0"]
    assert page.locator("#grid td").first.inner_text() == "·tuned1"
    assert "fitted affine map" in page.locator("#explained").inner_text()


def test_arrow_keys_go_from_cell_to_cell(shown: Visit) -> None:
    page = shown(sample_lens(["The", " cat"]))
    page.locator("#grid td").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    place = "document.activeElement.dataset.place"
    assert page.evaluate(place) == "1 1"
    assert "block 0, after" in page.locator("#tip").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.evaluate(place) == "1 1"
    assert page.locator("#grid td[tabindex='0']").count() == 1


def test_charts_show_both_lenses_and_the_floor(shown: Visit) -> None:
    page = shown(sample_lens(["The"]))
    legend = page.locator("#judged-legend li").all_inner_texts()
    assert legend == ["Logit lens", "Tuned lens", "Mean stream"]
    assert "1,234 tokens" in page.locator("#judged-rows").inner_text()
    labels = page.locator("#held-out .dot").evaluate_all(
        "all => all.map(e => e.getAttribute('aria-label'))"
    )
    assert "Tuned lens, block 0, KL 2 [1.5, 2.5] nats, the model's own first token in 25%" in (
        labels
    )
    assert page.locator("#here .line").count() == 2


def test_without_a_tuned_lens_nothing_speaks_of_one(shown: Visit) -> None:
    page = shown(sample_lens(["The"], tuned=False))
    assert page.locator("#kinds button").all_inner_texts() == ["Logit lens"]
    assert not page.locator("#judged").is_visible()


@pytest.mark.parametrize("width", [420, 1280])
def test_a_long_text_scrolls_inside_its_grid_alone(shown: Visit, width: int) -> None:
    lens = sample_lens([f" token{i}" for i in range(60)])
    page = shown(lens, viewport={"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    host = page.locator("#scroll")
    assert host.evaluate("e => e.scrollWidth > e.clientWidth")
    host.evaluate("e => { e.scrollLeft = 500; }")
    # The names of the layers stay where they are.
    name = page.locator("#grid tbody th").first
    assert name.bounding_box()["x"] == pytest.approx(host.bounding_box()["x"], abs=1)


def test_hostile_text_is_only_text(shown: Visit) -> None:
    lens = sample_lens(["<script>alert(1)</script>", HOSTILE, "\n", "\t"])
    page = shown(lens)
    assert page.locator("img").count() == 0
    assert page.locator("#grid script").count() == 0
    assert "<script>alert(1)</script>" in page.locator("#text").inner_text()
    assert "<script>alert(1)</script>" in page.locator("#grid thead").inner_text()
    assert "<img src=x" in page.locator("#grid thead").inner_text()
    assert page.locator("#grid thead th").all_inner_texts()[-2:] == ["↵", "⇥"]
    page.locator("#grid tbody tr").last.locator("td").first.hover()
    assert "<script>" in page.locator("#tip").inner_text()
