"""The atlas's home view in a real browser: search, list, filters, map."""

from pathlib import Path
from typing import Any

import pytest
from support.atlas_samples import sample_dial, sample_stability, write_sample
from support.browser import (
    Visit,
    at,
    needs_browser,
    rows,
    type_search,
    until,
)

pytestmark = needs_browser


# --- the home view


@pytest.mark.slow
def test_the_home_view_says_what_it_is_of(visit: Visit, site: Path) -> None:
    page = visit(site)
    assert page.inner_text("h1") == "Layer 9 of SmolLM2-135M-Instruct, feature by feature"
    assert page.title() == "batchtopk-2304-k32 · atlas"
    figures = page.inner_text("#figures")
    for part in ("200", "7.5%", "3,000", "tokens, median"):
        assert part in figures
    assert page.inner_text("#found") == "200 features"
    assert page.locator("#density rect").count() == 36
    assert "sae serve runs/NAME" in page.inner_text("#live")


def test_the_siblings_are_shown_with_this_dictionary_marked(visit: Visit, site: Path) -> None:
    page = visit(site)
    chosen = page.locator("#dictionaries tr.chosen")
    assert "batchtopk-2304-k32" in chosen.inner_text()
    assert "this dictionary" in chosen.inner_text()
    assert "this dictionary: batchtopk-2304-k32" in page.inner_text("#families")
    assert page.locator("#pareto-panels .dot.strong").count() == 3


def test_without_siblings_nothing_is_compared(visit: Visit, tmp_path: Path) -> None:
    page = visit(write_sample(tmp_path, 8, described=0))
    until(page, "atlas.taken.has('pareto')")
    assert page.locator("#pareto").is_hidden()


@pytest.mark.slow
def test_search_looks_into_labels_texts_and_numbers(visit: Visit, site: Path) -> None:
    page = visit(site)
    type_search(page, "violin")
    until(page, "!found.pending")
    assert "violin" in rows(page)[0]
    assert page.locator("#rows mark").first.inner_text() == "violin"
    # A feature of music whose label does not say so is found by its tokens, and comes later.
    until(page, "document.querySelectorAll('.pill').length > 0")
    in_text = page.locator(".row:has(.pill) .name").all_inner_texts()
    assert in_text
    assert not any("violin" in label for label in in_text)
    page.fill("#search", "violin ORCHESTRA")
    until(page, "!found.pending")
    together = rows(page)
    assert {"violin", "orchestra"} <= set(together[0].split(", "))
    page.fill("#search", "#12")
    assert page.locator("#rows .number").first.inner_text() == "12"
    page.fill("#search", "zebra")
    until(page, "!found.pending")
    assert page.inner_text("#found") == "0 of 200 features for “zebra”"
    assert "Fewer or shorter words" in page.inner_text("#list")


@pytest.mark.slow
def test_the_whole_way_by_keyboard(visit: Visit, site: Path) -> None:
    page = visit(site)
    type_search(page, "king")
    until(page, "!found.pending")
    found = page.evaluate("[...found.rows]")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    at(page, f"#f={found[1]}")
    assert f"2 of {len(found)} for “king”" in page.inner_text(".where")
    for key, place in [("j", 2), ("ArrowRight", 3), ("k", 2), ("ArrowLeft", 1)]:
        page.keyboard.press(key)
        at(page, f"#f={found[place]}")
    page.keyboard.press("Escape")
    at(page, "#q=king")
    assert page.locator('.row[aria-selected="true"]').get_attribute("data-f") == str(found[1])
    page.keyboard.press("Escape")
    assert page.inner_text("#found") == "200 features"
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#help").is_hidden()


@pytest.mark.parametrize("go", ["openFeature(9)", "location.hash = 'f=9'"])
def test_who_goes_on_before_the_hand_rests_is_not_called_back(
    visit: Visit, site: Path, go: str
) -> None:
    page = visit(site)
    type_search(page, "king")
    # The address is written before the page hears that it has changed.
    assert page.evaluate(f"({go}, writeAddress(), location.hash)") == "#f=9"
    at(page, "#f=9")
    if go.startswith("open"):
        page.go_back()
        at(page, "#q=king")


def test_what_is_typed_while_going_back_is_kept_whole(visit: Visit, site: Path) -> None:
    page = visit(site, "#f=9")
    at(page, "#f=9")
    # All of it before the page hears that the address has changed.
    page.evaluate(
        """() => {
          back();
          for (const text of ["k", "ki", "king"]) {
            document.querySelector("#search").value = text;
            typed();
          }
        }"""
    )
    at(page, "#q=king")
    assert page.input_value("#search") == "king"
    assert "“king”" in page.inner_text("#found")


def test_what_has_the_focus_can_be_seen(visit: Visit, site: Path) -> None:
    page = visit(site)
    seen = []
    for _ in range(16):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate(
                """() => {
                  const e = document.activeElement, s = getComputedStyle(e);
                  // A range shows it on its knob.
                  return [e.id, s.outlineStyle !== "none" || e.type === "range"];
                }"""
            )
        )
    assert {"search", "order", "list", "zoom-in", "paint"} <= {name for name, _ in seen}
    assert [name for name, visible in seen if not visible] == []


@pytest.mark.slow
def test_order_and_filters_narrow_the_list(visit: Visit, site: Path) -> None:
    page = visit(site)
    page.select_option("#order", "number")
    assert page.locator("#rows .number").all_inner_texts()[:3] == ["0", "1", "2"]
    page.select_option("#order", "rare")
    rates = page.evaluate("[...found.rows].map((f) => world.density[f]).filter((d) => d > 0)")
    assert rates == sorted(rates)
    page.check("#alive")
    assert page.inner_text("#found") == "185 of 200 features pass the filter"
    page.uncheck("#alive")
    page.check("#by-hand")
    assert rows(page) == ["my own words for it"]
    page.uncheck("#by-hand")
    page.locator(".handles input").first.focus()
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    low = page.evaluate("filter.low")
    narrowed = page.evaluate("[...found.rows].map((f) => Math.log10(world.density[f]))")
    assert 0 < len(narrowed) < 185
    assert min(narrowed) >= low
    page.click("#clear-range")
    assert page.inner_text("#found") == "200 features"


def test_dragging_over_the_histogram_filters(visit: Visit, site: Path) -> None:
    page = visit(site)
    page.locator("#density svg").scroll_into_view_if_needed()
    box = page.locator("#density svg").bounding_box()
    middle = box["y"] + 40
    page.mouse.move(box["x"] + 0.5 * box["width"], middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], middle)
    page.mouse.up()
    low, high = page.evaluate("[filter.low, filter.high]")
    logs = page.evaluate("[...found.rows].map((f) => Math.log10(world.density[f]))")
    assert logs
    assert all(low <= value <= high for value in logs)
    assert page.evaluate("map.on !== null")


# --- dials


def test_dials_come_first_with_their_number_beside_what_chance_gives(
    visit: Visit, site: Path
) -> None:
    page = visit(site)
    verdicts = [sample_dial(f)["dial_verdict"] for f in range(200)]
    n, scored = verdicts.count("dial"), sum(verdict != "" for verdict in verdicts)
    fact = page.locator("#figures div:has(dt:text-is('Dials'))")
    assert fact.locator("dd").inner_text() == f"{n}of {scored} scored, about 3 by chance"
    assert f"once in 49 times: about 3 of {scored}, dials and weak" in fact.get_attribute(
        "title"
    )
    page.select_option("#order", "dial")
    order = page.evaluate("[...found.rows]")
    ranks = ["dial", "weak", "none", ""]
    placed = [ranks.index(verdicts[f]) for f in order]
    assert placed == sorted(placed)
    scores = [float(f"{sample_dial(f)['dial_score']:.3g}") for f in order[:n]]
    assert scores == sorted(scores, reverse=True)
    assert page.locator(".row .pill").first.inner_text() == "dial"
    page.check("#dials-only")
    assert page.inner_text("#found") == f"{n} of 200 features pass the filter"
    assert set(page.evaluate("[...found.rows]")) == set(order[:n])


@pytest.mark.slow
def test_the_map_and_the_list_are_coloured_by_dial_score_where_there_is_one(
    visit: Visit, site: Path
) -> None:
    page = visit(site)
    page.select_option("#paint", "dial")
    assert page.evaluate("[0, 3].map((f) => map.scale.share(f) >= 0)") == [True, False]
    page.fill("#search", "#3")
    # Feature 3 was not scored: it has no colour of its own, and so has what is dead.
    swatch = page.locator('.row[data-f="3"] .swatch')
    assert swatch.evaluate("(one) => one.style.getPropertyValue('--hue')") == ""
    until(page, "map.shades !== null && map.shades[3] === COLOURLESS")
    assert page.evaluate("map.shades[0] !== COLOURLESS")
    assert page.inner_text("#legend-high").startswith("+1.")


def test_an_atlas_without_scores_has_no_word_on_dials(visit: Visit, tmp_path: Path) -> None:
    page = visit(write_sample(tmp_path, 40, dials=False))
    assert "Dials" not in page.inner_text("#figures")
    assert page.locator("#order option[value=dial], #paint option[value=dial]").count() == 0
    assert page.locator("#dials-only").is_hidden()
    page.evaluate("location.hash = 'f=12'")
    page.wait_for_selector(".context")
    assert page.locator("#effect").is_hidden()


# --- stability


def test_features_are_ordered_and_filtered_by_what_another_seed_finds_again(
    visit: Visit, site: Path
) -> None:
    page = visit(site)
    stability = sample_stability([f % 13 == 5 for f in range(200)])
    stable = {f for f, value in enumerate(stability) if value is not None and value >= 0.7}
    tick = page.locator("label:has(#stable-only)")
    assert tick.inner_text() == f"{len(stable)} stable"
    assert "seed-43" in tick.get_attribute("title")
    assert "mean 0.55, by chance 0.37" in tick.get_attribute("title")
    page.select_option("#order", "stable")
    values = [stability[f] for f in page.evaluate("[...found.rows]")]
    alive = [value for value in values if value is not None]
    assert alive == sorted(alive, reverse=True)
    assert values[: len(alive)] == alive
    assert page.locator(".row .pill").first.inner_text() == "0.99"
    page.check("#stable-only")
    assert page.inner_text("#found") == f"{len(stable)} of 200 features pass the filter"
    assert set(page.evaluate("[...found.rows]")) == stable
    page.select_option("#paint", "stable")
    assert page.evaluate("Number.isNaN(map.scale.share(5))")
    page.evaluate("location.hash = 'f=12'")
    page.wait_for_selector(".context")
    one = page.locator("#feature-head div:has(dt:text-is('Stability')) dd")
    assert one.inner_text() == f"{stability[12]:.2f}by chance 0.37"


def test_an_atlas_of_a_run_with_one_seed_has_no_word_on_stability(
    visit: Visit, tmp_path: Path
) -> None:
    page = visit(write_sample(tmp_path, 40, stability=False))
    assert page.locator("#order option[value=stable]").count() == 0
    assert page.locator("#paint option[value=stable]").count() == 0
    assert page.locator("#stable-only").is_hidden()


# --- the map


def spot(page: Any, feature: int) -> tuple[float, float]:
    box = page.locator("#map canvas").bounding_box()
    left, top = page.evaluate(f"toScreen(map, {feature})")
    return box["x"] + left, box["y"] + top


def lonely(page: Any) -> int:
    """A feature whose dot no other is near."""
    return page.evaluate(
        """() => {
          const all = [...Array(world.n).keys()];
          const { x, y } = world;
          const far = (f, g) => g === f || Math.hypot(x[f] - x[g], y[f] - y[g]) > 60;
          return all.find((f) => !dead(f) && all.every((g) => far(f, g)));
        }"""
    )


@pytest.mark.slow
def test_the_map_shows_names_and_opens_what_is_clicked(visit: Visit, site: Path) -> None:
    page = visit(site)
    feature = lonely(page)
    page.mouse.move(*spot(page, feature))
    tip = page.inner_text("#tip")
    assert page.evaluate(f"labelOf({feature})") in tip
    assert f"feature {feature} · fires on" in tip
    page.mouse.click(*spot(page, feature))
    at(page, f"#f={feature}")
    page.keyboard.press("Escape")
    until(page, "document.body.dataset.view === 'home'")
    assert page.locator('.row[aria-selected="true"]').get_attribute("data-f") == str(feature)


@pytest.mark.slow
def test_the_map_is_zoomed_and_moved_by_wheel_hand_and_keys(visit: Visit, site: Path) -> None:
    page = visit(site)
    feature = lonely(page)
    before = spot(page, feature)
    page.mouse.move(*before)
    page.mouse.wheel(0, -600)
    until(page, "map.view.zoom > 2")
    # What lies under the pointer stays there.
    assert spot(page, feature) == pytest.approx(before, abs=3)
    page.mouse.down()
    page.mouse.move(before[0] - 40, before[1] + 25, steps=4)
    page.mouse.up()
    moved = spot(page, feature)
    assert page.url.endswith("index.html")
    assert moved == pytest.approx((before[0] - 40, before[1] + 25), abs=3)
    page.keyboard.press("m")
    page.keyboard.press("ArrowRight")
    assert spot(page, feature)[0] == pytest.approx(moved[0] - 60, abs=3)
    page.keyboard.press("+")
    middle = page.evaluate(
        "nearest(map, map.width / 2, map.height / 2, Math.hypot(map.width, map.height))"
    )
    assert f"feature {middle}" in page.inner_text("#tip")
    page.keyboard.press("Enter")
    at(page, f"#f={middle}")
    page.keyboard.press("Escape")
    page.click("#zoom-all")
    until(page, "map.view.zoom === 1")


@pytest.mark.slow
def test_a_wheel_just_after_the_page_opened_zooms_the_map(visit: Visit, site: Path) -> None:
    page = visit(site)
    page.evaluate("performance.now = () => 100")
    page.mouse.move(*spot(page, lonely(page)))
    page.mouse.wheel(0, -600)
    until(page, "map.view.zoom > 2")


def test_the_map_takes_other_colours(visit: Visit, site: Path) -> None:
    page = visit(site)
    picture = "document.querySelector('#map canvas').toDataURL()"
    by_density = page.evaluate(picture)
    page.select_option("#paint", "strength")
    page.wait_for_timeout(100)
    assert page.evaluate(picture) != by_density
    assert float(page.inner_text("#legend-low")) < float(page.inner_text("#legend-high"))
