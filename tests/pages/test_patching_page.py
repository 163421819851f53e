"""The page of activation patching, in a browser: maps, switches, what is kept or missing."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from support.atlas_samples import HOSTILE
from support.browser import Visit, needs_browser
from support.patching_sample import CLEAN, CORRUPT, DIFFERING, TOKENS, sample_patching

from sae.pages.patching import MOST_FEATURES, lined_up, write_patching_page

pytestmark = needs_browser
Sample = tuple[dict[str, Any], pa.Table]
LAST = len(TOKENS) - 1
NARROW = {"viewport": {"width": 420, "height": 900}}


@pytest.fixture(name="sample", scope="module")
def sample_fixture() -> Sample:
    return sample_patching()


@pytest.fixture(name="shown")
def shown_fixture(visit: Visit, tmp_path: Path) -> Visit:
    def show(sample: Sample, **options: Any) -> Any:
        write_patching_page(tmp_path, *sample)
        return visit(tmp_path / "index.html", **options)

    return show


def without(table: pa.Table, name: str, *values: Any) -> pa.Table:
    return table.filter(pc.invert(pc.is_in(table[name], pa.array(values))))


def cell(page: Any, title: str, layer: int, column: int) -> Any:
    """The square of a map: `column` is a position or a head."""
    where = f"layer {layer}, " + (
        f"head {column}" if title in ("Heads", "To") else rf"[\s\S]*position {column},"
    )
    return page.locator(f"svg[aria-label^='{title}'] rect.place").and_(
        page.get_by_label(re.compile(where + r"(?!\d)"))
    )


def fill(place: Any) -> list[float]:
    """Red, green and blue of what is drawn, from 0 to 255."""
    text = place.evaluate(
        """e => { const c = document.createElement('canvas').getContext('2d');
        c.fillStyle = getComputedStyle(e).fill; c.fillRect(0, 0, 1, 1);
        return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3) }"""
    )
    return list(text)


def effect_of(table: pa.Table, **wanted: Any) -> float:
    for name, value in wanted.items():
        table = table.filter(pc.equal(table[name], value))
    (effect,) = table["effect"].to_pylist()
    return effect


def test_the_page_begins_with_what_is_shown_and_how_to_read_it(shown: Visit, sample) -> None:
    page = shown(sample)
    lede = page.locator("#lede").inner_text()
    assert "SmolLM2-135M-Instruct" in lede
    assert "0 is not at all, 1 is all the way" in lede
    assert page.title() == "ioi: patching of HuggingFaceTB/SmolLM2-135M-Instruct"
    assert page.locator("h2:visible").all_inner_texts() == [
        "Two prompts, two answers",
        "Layer by layer, token by token",
        "Head by head",
        "Feature by feature",
        "The strongest places",
        "How far to trust the estimates",
        "What was left out",
        "What it cost",
    ]


def test_the_prompts_stand_token_under_token_with_the_differing_ones_marked(
    shown: Visit, sample
) -> None:
    page = shown(sample)
    rows = page.locator("#pair tbody tr")
    marked = rows.locator("mark").all_inner_texts()
    assert marked == ["·John", "·Mary"]
    for row in range(2):
        cells = rows.nth(row).locator("td")
        assert cells.count() == len(TOKENS)
        assert cells.nth(DIFFERING).locator("mark").count() == 1
    note = page.locator("#pair-note").inner_text()
    assert re.search(
        r"clean prompt the model prefers “.*\sMary.*” to “.*\sJohn.*” by 4.2", note
    )
    assert re.search(r"corrupt one “.*\sJohn.*” to “.*\sMary.*” by 4.3 logits", note)
    assert "first of 8 pairs whose positions line up, of which 2 were patched" in note


def test_neighbours_that_differ_are_one_cell_and_what_cannot_be_told_is_text() -> None:
    tokens = ["<s>", "the", " old", " cat", " sat"]
    group = {"clean": "the old cat sat", "corrupt": "the young dog sat", "tokens": tokens}
    rows = lined_up({**group, "differing": [2, 3]})
    assert [(one["text"], one["span"]) for one in rows["corrupt"]] == [
        ("<s>", 1),
        ("the", 1),
        (" young dog", 2),
        (" sat", 1),
    ]
    own = {**group, "differing": [2, 3], "corrupt_tokens": ["a", "b", "c", "d", "e"]}
    assert [one["text"] for one in lined_up(own)["corrupt"]] == list("abcde")
    assert lined_up({**group, "differing": [4]}) is None
    assert lined_up({**group, "clean": "else", "differing": [2, 3]}) is None
    first, last = {**group, "corrupt": "a dog old cat sat"}, {**group, "corrupt": "the old c"}
    assert lined_up({**first, "differing": [1]})["corrupt"][1]["text"] == "a dog"
    assert lined_up({**last, "differing": [3, 4]})["corrupt"][3]["text"] == " c"


def test_prompts_that_cannot_be_lined_up_are_shown_as_text(shown: Visit, sample) -> None:
    summary, table = sample
    groups = [{**group, "clean": CLEAN + " then"} for group in summary["groups"]]
    page = shown(({**summary, "groups": groups}, table))
    assert page.locator("#pair dd").all_inner_texts() == [CLEAN + " then", CORRUPT]


def test_colours_are_white_at_zero_and_deepest_at_one_and_beyond(shown: Visit, sample) -> None:
    page = shown(sample)
    assert fill(cell(page, "Residual stream", 5, 2)) == [255, 255, 255]
    assert fill(cell(page, "Residual stream", 25, LAST)) == [10, 79, 143]
    red, green, blue = fill(cell(page, "Heads", 24, 7))
    assert red > green > blue
    half = fill(cell(page, "MLP", 17, DIFFERING))
    assert all(10 < some < 255 for some in half)
    assert half[2] > half[0]
    assert page.locator("#scale").inner_text().count("not measured") == 1


def test_colours_are_dark_at_zero_on_a_dark_page(shown: Visit, sample) -> None:
    page = shown(sample, color_scheme="dark")
    assert max(fill(cell(page, "Residual stream", 5, 2))) < 50
    assert min(fill(cell(page, "Residual stream", 25, LAST))) > 100


def test_a_map_has_a_square_for_every_effect_with_the_first_layer_below(
    shown: Visit, sample
) -> None:
    page = shown(sample)
    maps = page.locator("#maps svg, #heads svg")
    counts = [maps.nth(i).locator(".place").count() for i in range(5)]
    assert counts == [30 * 15] * 3 + [30 * 9, 22 * 9]
    tops = [cell(page, "MLP", layer, 3).bounding_box()["y"] for layer in (0, 1, 29)]
    assert tops == sorted(tops, reverse=True)
    labels = maps.first.locator(".token").all_text_contents()
    assert [label.endswith("drink") for label in labels].index(True) == 13
    assert maps.first.locator(".differs").count() == 1
    assert "rotate(-55" in maps.first.locator(".token").first.get_attribute("transform")


def test_a_square_says_what_it_is_under_the_pointer_and_with_the_focus(
    shown: Visit, sample
) -> None:
    page = shown(sample)
    place = cell(page, "MLP", 17, DIFFERING)
    at = {"site": "mlp", "group": 0, "layer": 17, "position": DIFFERING}
    effect = effect_of(sample[1], method="exact", patch="denoising", **at)
    place.hover()
    tip = page.locator("#tip").inner_text()
    for said in ("MLP", "layer 17", "John…", "position 10", "blocks.17.hook_mlp_out"):
        assert said in tip
    low, high = effect - 0.02 - 0.1 * effect, effect + 0.02 + 0.1 * effect
    assert f"effect {effect:.2f} [{low:.2f}, {high:.2f}], mean of 2 pairs" in tip
    page.mouse.move(5, 5)
    assert not page.locator("#tip").is_visible()
    place.focus()
    assert "layer 17" in page.locator("#tip").inner_text()


def test_a_map_is_one_tab_stop_and_arrow_keys_walk_on_it(shown: Visit, sample) -> None:
    page = shown(sample)
    assert page.locator("#maps svg").first.locator("[tabindex='0']").count() == 1
    cell(page, "Heads", 18, 3).focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    focused = "document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(focused).startswith("Head, layer 19, head 4, effect ")
    page.keyboard.press("Enter")
    assert "layer 19, head 4" in page.locator("#pinned").inner_text()
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    assert "head 8" in page.evaluate(focused)


def test_a_press_keeps_a_square_with_its_command_and_the_other_measurements(
    shown: Visit, sample
) -> None:
    page = shown(sample)
    assert not page.locator("#pinned").is_visible()
    place = cell(page, "Residual stream", 20, LAST)
    place.click()
    kept = page.locator("#pinned")
    assert kept.locator("pre").inner_text() == (
        "sae patch edit runs/ioi out.yaml site=residual layer=20 position=14 group=0"
    )
    assert "blocks.20.hook_resid_post" in kept.inner_text()
    assert "another pair’s corrupt prompt: 0.03." in kept.inner_text()
    assert kept.locator("tbody th").all_inner_texts() == [
        "Exact patching",
        "RelP",
        "Integrated gradients",
        "Plain gradients",
    ]
    assert kept.locator("tbody tr.here td").all_inner_texts() == [
        "1.00 [0.88, 1.12]",
        "0.80 [0.70, 0.90]",
    ]
    assert place.get_attribute("aria-pressed") == "true"
    assert page.locator("rect.kept[visibility=visible]").count() == 1
    assert page.locator("#strongest [aria-pressed=true]").count() == 1
    place.click()
    assert not kept.is_visible()
    assert (
        page.locator("[data-place][aria-pressed=true], rect[visibility=visible]").count() == 0
    )


@pytest.mark.parametrize(
    ("where", "command"),
    [
        ("#heads svg[aria-label=Heads] [tabindex='0']", "site=head layer=18 head=3 group=0"),
        (".feature-bar >> nth=1", "site=feature feature=77 group=0"),
        ("#parts [tabindex='0']", "site=features+error position=10 group=0"),
    ],
)
def test_every_kind_of_place_has_its_command(shown: Visit, sample, where, command) -> None:
    page = shown(sample)
    page.locator(where).click()
    text = page.locator("#pinned pre").inner_text()
    assert text == f"sae patch edit runs/ioi out.yaml {command}"


def test_a_path_is_kept_without_a_command(shown: Visit, sample) -> None:
    page = shown(sample)
    page.locator("#heads svg[aria-label^=To] [tabindex='0']").click()
    kept = page.locator("#pinned")
    assert "Path layer 18, head 3, to blocks.22 head 4, query" in kept.inner_text()
    assert kept.locator("pre").count() == 0
    page.keyboard.press("Escape")
    assert not kept.is_visible()


def test_a_folder_is_quoted_for_the_shell_and_has_a_name_if_none_is_given(
    shown: Visit, sample, tmp_path: Path
) -> None:
    summary, table = sample
    page = shown(({**summary, "folder": "my runs/it's"}, table))
    page.locator(".feature-bar").first.click()
    text = page.locator("#pinned pre").inner_text()
    assert text.startswith("""sae patch edit 'my runs/it'"'"'s' out.yaml""")
    unnamed = {key: value for key, value in summary.items() if key != "folder"}
    page = shown((unnamed, table))
    page.locator(".feature-bar").first.click()
    assert "edit RUN_FOLDER out.yaml" in page.locator("#pinned pre").inner_text()


def test_switches_change_maps_and_words_and_keep_the_place(shown: Visit, sample) -> None:
    page = shown(sample)
    at = {"site": "mlp", "group": 0, "layer": 17, "position": DIFFERING}
    cell(page, "MLP", 17, DIFFERING).click()
    for method, name in (("relp", "RelP"), ("plain", "Plain gradients")):
        page.get_by_role("button", name=name, exact=True).click()
        for patch, other in (("denoising", "restored"), ("noising", "destroyed")):
            page.locator(f"[data-value={patch}]").click()
            effect = effect_of(sample[1], method=method, patch=patch, **at)
            label = cell(page, "MLP", 17, DIFFERING).get_attribute("aria-label")
            assert f"effect {effect:.2f} [" in label
            assert other in page.locator("#meaning").inner_text()
            assert other in page.locator("#scale").inner_text()
        assert page.locator("#meaning b").first.inner_text().strip() == f"{name}."
    assert page.locator("#switches [aria-pressed=true]").all_inner_texts() == [
        "Plain gradients",
        "Corrupt into clean",
    ]
    assert page.evaluate("document.activeElement.dataset.value") == "noising"
    assert page.locator("#maps rect.kept[visibility=visible]").count() == 1


def test_a_single_pair_has_no_intervals(shown: Visit, sample) -> None:
    page = shown(sample)
    cell(page, "MLP", 17, DIFFERING).click()
    page.locator("select").select_option("1")
    assert not page.locator("#pinned").is_visible()
    place = cell(page, "MLP", 17, DIFFERING)
    label = place.get_attribute("aria-label")
    assert label.endswith("effect 0.50, 1 pair, blocks.17.hook_mlp_out")
    place.click()
    assert page.locator("#pinned pre").inner_text().endswith("position=10 group=1")
    assert "[" not in page.locator("#pinned").inner_text()
    assert "[" not in page.locator("#strongest-table").inner_text()
    assert "[" not in page.locator("#features").inner_text()
    assert page.locator(".whisker, .feature-bar s").count() == 0
    assert "only pair of its kind" in page.locator("#pair-note").inner_text()
    # Controls were tried in the first group alone.
    assert page.locator("#strongest thead th").all_inner_texts() == ["Place", "Effect"]


def test_what_was_not_measured_together_gives_way_to_what_was(shown: Visit, sample) -> None:
    summary, table = sample
    exact = pc.and_(pc.equal(table["method"], "exact"), pc.equal(table["patch"], "denoising"))
    relp = pc.and_(pc.equal(table["method"], "relp"), pc.equal(table["patch"], "noising"))
    page = shown((summary, table.filter(pc.or_(exact, relp))))
    pressed = page.locator("#switches [aria-pressed=true]")
    assert pressed.all_inner_texts() == ["Exact patching", "Clean into corrupt"]
    page.locator("[data-value=noising]").click()
    assert pressed.all_inner_texts() == ["RelP", "Corrupt into clean"]
    page.locator("[data-value=exact]").click()
    assert pressed.all_inner_texts() == ["Exact patching", "Clean into corrupt"]


def test_features_stand_by_their_effect_and_lead_to_the_atlas(shown: Visit, sample) -> None:
    page = shown(sample)
    lines = page.locator(".features li")
    assert lines.count() == MOST_FEATURES
    assert f"the {MOST_FEATURES} strongest of 60" in page.locator("#features-note").inner_text()
    first = lines.first.locator("a")
    assert first.get_attribute("href") == "../atlas/index.html#f=412"
    assert first.inner_text().split("\n")[0].strip().startswith("names that came before")
    assert lines.nth(2).locator("a").inner_text() == "Feature 1908"
    boxes = [lines.nth(i).locator("i").bounding_box() for i in (0, 2, 4)]
    assert [box["x"] for box in boxes] == [boxes[0]["x"]] * 3
    assert boxes[0]["width"] > boxes[1]["width"] > boxes[2]["width"]
    below_zero = lines.nth(1).locator("i").bounding_box()
    assert below_zero["x"] + below_zero["width"] == pytest.approx(boxes[0]["x"], abs=1)


def test_without_an_atlas_features_have_no_links(shown: Visit, sample) -> None:
    summary, table = sample
    dictionary = {key: summary["dictionary"][key] for key in ("name", "hook_name")}
    page = shown(({**summary, "dictionary": {**dictionary, "labels": {}}}, table))
    assert page.locator(".features a").count() == 0
    assert page.locator(".features li").first.inner_text().startswith("Feature 412")


def test_features_and_error_stand_side_by_side_at_every_position(shown: Visit, sample) -> None:
    page = shown(sample)
    assert page.locator("#parts .part-bar").count() == 3 * len(TOKENS)
    assert page.locator("#parts-legend li").count() == 3
    page.locator("#parts .hit[tabindex='0']").focus()
    page.keyboard.press("ArrowLeft")
    tip = page.locator("#tip").inner_text()
    assert tip.startswith("Error term")
    assert "blocks.9.hook_resid_post" in tip


def test_the_strongest_places_are_ranked_with_controls_beside_them(
    shown: Visit, sample
) -> None:
    page = shown(sample)
    rows = page.locator("#strongest tbody tr")
    effects = [
        abs(float(text.split(" ")[0].replace("−", "-")))
        for text in rows.locator("td:nth-child(2)").all_inner_texts()
    ]
    assert effects == sorted(effects, reverse=True)
    controls = {
        row.locator("b").inner_text(): row.locator("td").nth(1).inner_text()
        for row in rows.all()
        if row.locator("td").nth(1).inner_text() != "–"
    }
    assert controls == {
        "Residual stream": "0.03",
        "Head": "0.05",
        "Attention": "−0.02",
        "MLP": "not measurable",
    }
    page.get_by_role("button", name="RelP", exact=True).click()
    assert page.locator("#strongest thead th").all_inner_texts() == ["Place", "Effect"]
    page.get_by_role("button", name=re.compile("^Feature 412 “")).click()
    assert page.locator("#pinned").is_visible()


def test_agreement_has_a_column_for_the_control_and_marks_the_best(
    shown: Visit, sample
) -> None:
    page = shown(sample)
    table = page.locator("#agreement-table")
    assert table.locator("thead th").all_inner_texts() == [
        "Site",
        "Plain gradients",
        "Integrated gradients",
        "RelP",
        "Length alone",
    ]
    mlp = table.locator("tbody tr", has_text="MLP").first
    assert mlp.locator("td").all_inner_texts() == ["0.74", "0.86", "0.89", "0.31"]
    assert mlp.locator("td b").all_inner_texts() == ["0.89"]
    assert "450 places" in mlp.locator("th").inner_text()
    shares = mlp.locator("td").evaluate_all("all => all.map(e => e.style.cssText)")
    assert "89.0%" in shares[2]


def test_what_was_left_out_and_the_cost_are_told(shown: Visit, sample) -> None:
    page = shown(sample)
    left_out = page.locator("#left-out").inner_text()
    assert "Tom and Guinevere" in left_out
    assert "Its prompts have 15 and 17 tokens" in left_out
    line = page.locator("#cost-line").inner_text()
    assert "the work of 1,555 whole forward passes instead of 3,240" in line
    assert "plain gradients 0.5 s, RelP 0.6 s, integrated gradients 4.1 s" in line
    assert page.locator("#cost-table tbody tr").count() == 8


def test_what_is_missing_leaves_no_empty_heading(shown: Visit, sample) -> None:
    summary, table = sample
    names = ("features", "error", "features+error", "feature", "head", "path", "residual")
    table = without(without(table, "site", *names), "method", "exact")
    empty = {"agreement": [], "controls": [], "left_out": [], "dictionary": None}
    cost = [{"method": "relp", "seconds": 1.0}]
    page = shown(({**summary, **empty, "cost": cost}, table))
    assert page.locator("h2:visible").all_inner_texts() == [
        "Two prompts, two answers",
        "Layer by layer, token by token",
        "The strongest places",
        "What it cost",
    ]
    assert page.locator("#maps svg").count() == 2
    assert page.locator("#switches [aria-pressed=true]").first.inner_text() == "RelP"
    assert page.locator("#cost table").count() == 0
    assert page.locator("figcaption:visible").count() == 2


def test_a_switch_with_one_choice_is_none(shown: Visit, sample) -> None:
    summary, table = sample
    one = table.filter(pc.equal(table["method"], "exact"))
    one = one.filter(pc.equal(one["patch"], "denoising"))
    page = shown(({**summary, "groups": summary["groups"][:1]}, one))
    assert not page.locator("#switches").is_visible()
    assert page.locator("#meaning").inner_text().startswith("Exact patching.")


def test_if_no_pair_could_be_patched_the_reasons_are_left(shown: Visit, sample) -> None:
    summary, table = sample
    nothing = {"groups": [], "agreement": [], "controls": [], "cost": [], "dictionary": None}
    page = shown(({**summary, **nothing}, table.slice(0, 0)))
    assert page.locator("h2:visible").all_inner_texts() == ["What was left out"]


def test_effects_that_are_no_numbers_are_not_drawn(shown: Visit, sample) -> None:
    summary, table = sample
    place = table.schema.get_field_index("effect")
    is_first = pc.equal(table["layer"], 0)
    broken = pc.if_else(pc.fill_null(is_first, False), float("nan"), table["effect"])
    page = shown((summary, table.set_column(place, "effect", broken)))
    assert page.locator("#maps svg").first.locator(".place").count() == 29 * 15


@pytest.mark.parametrize("text", ["", HOSTILE])
def test_a_narrow_page_goes_sideways_in_boxes_alone(shown: Visit, text: str) -> None:
    page = shown(sample_patching(text), **NARROW)
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(fits)
    page.locator("#maps rect[tabindex='0']").first.click()
    page.locator("select").scroll_into_view_if_needed()
    assert page.evaluate(fits)
    assert page.locator("#pinned pre").is_visible()


def test_a_box_that_is_too_narrow_shows_the_strongest_effect(shown: Visit, sample) -> None:
    page = shown(sample, **NARROW)
    box = page.locator("#parts .sideways")
    strongest = box.locator("[tabindex='0']").bounding_box()
    assert box.evaluate("e => e.scrollWidth > e.clientWidth")
    assert 0 < strongest["x"] < 420


def test_hostile_text_is_only_text(shown: Visit) -> None:
    page = shown(sample_patching(HOSTILE))
    assert page.locator("img").count() == 0
    assert page.title().startswith("ioi</script>")
    for part in ("#eyebrow", "#lede", "#pair", "#pair-note", "#left-out", "#features"):
        assert "<img src=x" in page.locator(part).inner_text()
    assert "<img src=x" in page.locator("#heads figcaption").last.inner_text()
    cell(page, "MLP", 17, LAST).click()
    assert "<img src=x" in page.locator("#pinned").inner_text()
    assert page.locator("#maps [tabindex='0']").count() == 3


def test_maps_are_drawn_quickly(shown: Visit, sample) -> None:
    page = shown(sample)
    took = page.evaluate(
        """() => { const from = performance.now(); choose({method: 'relp'});
        document.body.offsetHeight; return performance.now() - from }"""
    )
    assert took < 2000
