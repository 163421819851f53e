"""The steering section of the report, in a browser: arms, features, checks, texts."""

from pathlib import Path
from typing import Any

import pytest
from support.atlas_samples import HOSTILE
from support.browser import Visit, needs_browser
from support.figures import compared, made_figures
from support.steering_sample import DOSES, TITLES, sample_steering

from sae.pages.page import render_page

pytestmark = needs_browser


@pytest.fixture(name="shown")
def shown_fixture(visit: Visit, tmp_path: Path) -> Visit:
    """Opens a report of nothing but a dictionary and what steering gave."""

    def show(steering: dict[str, Any], **options: Any) -> Any:
        report = {
            "model_name": "maker/model",
            "hook_name": "blocks.9.hook_resid_post",
            "d_in": 8,
            **compared(made_figures("a")).for_page(),
            "atlases": {"a": "atlas/a/index.html"},
            "steering": steering,
        }
        (tmp_path / "report.html").write_text(render_page(report, [], {}), "utf-8")
        return visit(tmp_path / "report.html", **options).locator("#steering")

    return show


def row(section: Any, title: str) -> list[str]:
    found = section.locator("#steering-arms tbody tr", has_text=title)
    return [text.replace("\n", " ") for text in found.locator("td").all_inner_texts()]


def facts(article: Any) -> dict[str, str]:
    terms = article.locator(".facts dt").all_inner_texts()
    return dict(zip(terms, article.locator(".facts dd").all_inner_texts(), strict=True))


def labels(chart: Any) -> set[str]:
    return set(chart.locator(".label").all_text_contents())


def test_the_section_begins_with_what_came_out(shown: Visit) -> None:
    steering = sample_steering("")
    section = shown(steering)
    first = section.locator("h2 + p")
    assert first.inner_text() == steering["summary"]["headline"].strip()
    assert steering["summary"]["read_back"] in section.inner_text()
    body = section.locator(".intro").first
    size = "e => parseFloat(getComputedStyle(e).fontSize)"
    assert first.evaluate(size) > 1.2 * body.evaluate(size)
    assert "1 of 3 features has no operating point" in section.inner_text()


def test_every_arm_has_its_figures_with_intervals_and_how_steering_compares(
    shown: Visit,
) -> None:
    section = shown(sample_steering(""))
    heads = section.locator("#steering-arms tbody th").all_inner_texts()
    assert [head.split("\n")[0] for head in heads] == list(TITLES.values())
    columns = section.locator("#steering-arms thead th").all_inner_texts()
    texts = ["Perplexity", "Distinct\u20112", "Longest repeat"]
    assert columns[columns.index("Perplexity") :] == texts
    prompt = row(section, "Plain prompt")
    assert prompt[0].startswith("beats it on 0, loses on 2 0 cannot be told apart")
    assert prompt[0].endswith("difference −5% [−13%, +3%]")
    assert prompt[1:5] == [
        "+2.9 [+2.2, +3.6]",
        "+0.29 [+0.18, +0.4]",
        "58% [48%, 68%]",
        "0.021 [0.018, 0.025]",
    ]
    assert row(section, "Unsteered")[0] == ""
    assert all("[" in cell for cell in row(section, "This feature")[1:])


def test_what_was_not_measured_is_a_dash_that_says_why(shown: Visit) -> None:
    steering = sample_steering("")
    figures = steering["summary"]["arms"][1]["figures"]
    figures["round_trip"] = None
    figures["gain"] = {"mean": 0.25, "low": None, "high": None}
    section = shown(steering)
    assert row(section, "Unsteered")[2:4] == ["+0.25", "–"]
    dash = section.locator("#steering-arms td[title]")
    assert dash.get_attribute("title") == "Not measured for this arm at its operating point."
    # The picture leaves it out and the rest stands.
    assert "Unsteered" not in labels(section.locator("#steering-picture"))
    assert "Plain prompt" in labels(section.locator("#steering-picture"))


@pytest.mark.parametrize("width", [420, 1280])
def test_the_picture_names_every_arm_and_marks_the_bound(shown: Visit, width: int) -> None:
    section = shown(sample_steering(""), viewport={"width": width, "height": 900})
    picture = section.locator("#steering-picture")
    assert labels(picture) == set(TITLES.values())
    assert picture.locator(".span").count() == 2 * len(TITLES)
    assert picture.locator(".limit").count() == 1
    assert "bound 0.05" in picture.inner_text()
    assert section.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


def test_the_picture_shows_another_effect_on_a_press(shown: Visit) -> None:
    picture = shown(sample_steering("")).locator("#steering-picture")
    assert picture.locator("[aria-pressed=true]").inner_text() == "Round trip"
    picture.get_by_text("Shift", exact=True).click()
    assert picture.locator("[aria-pressed=true]").inner_text() == "Shift"
    assert picture.locator("svg").get_attribute("aria-label") == (
        "All arms: Shift against cost"
    )
    assert labels(picture) == set(TITLES.values())
    tip = picture.locator(".dot.strong").get_attribute("aria-label")
    assert "Shift: +1.2 [+0.84, +1.6]" in tip
    assert "Perplexity: 9.8 [8.3, 11], Distinct\u20112: " in tip


def test_a_feature_shows_its_dose_beside_what_chance_gives(shown: Visit) -> None:
    article = shown(sample_steering("")).locator(".steer").first
    assert "strongest dose whose cost" in article.locator(".told").inner_text()
    assert facts(article) == {
        "Operating dose": "+0.5×",
        "Shift there": "+1.2[+0.84, +1.6]",
        "Against 32 random directions": "z 5.1p 0.03",
        "Against 32 random features": "z 3.2p 0.061",
        "Monotonicity": "0.981: every stronger dose shifts more",
        "Dose of half the effect": "+0.4×",
        "Dose that breaks the text": "+2×",
    }


def test_a_features_charts_mark_the_operating_point_among_all_doses(shown: Visit) -> None:
    article = shown(sample_steering("")).locator(".steer").first
    charts = article.locator("svg")
    assert charts.count() == 3
    for i in range(3):
        assert charts.nth(i).locator(".dot.strong").count() == 1
        assert charts.nth(i).locator(".span").count() > len(DOSES)
    cost, curve = charts.nth(1), charts.nth(2)
    assert cost.locator(".limit").count() == curve.locator(".limit").count() == 1
    assert {"+0.5× operating dose", "+2×", "−2×", "Plain prompt", "Wrong sign"} <= labels(curve)
    # From the strongest dose below zero to the strongest above it, joined in this order.
    path = curve.locator("path[style*='--accent']").get_attribute("d")
    assert path.count("L") == len(DOSES) - 1


def test_checks_say_whether_they_hold_or_could_not_be_made(shown: Visit) -> None:
    checks = shown(sample_steering("")).locator(".steer").first.locator(".checks li")
    assert [text.split(".")[0].replace("\n", " ") for text in checks.all_inner_texts()] == [
        "✓ Other wordings: holds",
        "– Chat template: not measurable",
        "✗ Contrary instruction: does not hold",
    ]
    assert "The tokenizer has no chat template." in checks.nth(1).inner_text()
    assert "shift +1 [+0.6, +1.4] · 83% of the shift is kept" in checks.nth(0).inner_text()


def test_a_feature_without_an_operating_point_says_why(shown: Visit) -> None:
    article = shown(sample_steering("")).locator(".steer").nth(2)
    told = "Every dose that moves the text costs more than 0.05 nats a token."
    assert article.locator(".told").inner_text() == told
    found = facts(article)
    assert found["Operating dose"] == found["Shift there"] == "–"
    assert found["Against random directions"] == found["Against random features"] == "–"
    assert article.locator(".facts dd").first.get_attribute("title") == told
    assert article.locator(".dot.strong").count() == 0
    assert "operating" not in article.locator(".doses").inner_text()


def test_texts_of_all_baselines_stand_below_the_doses(shown: Visit) -> None:
    article = shown(sample_steering("")).locator(".steer").first
    doses = article.locator(".dose").all_inner_texts()
    assert [text.replace("\n", " ") for text in doses] == [
        "−2×",
        "−0.5×",
        "0",
        "+0.5× operating dose",
        "+1×",
        "+2×",
        "Difference of means +0.5×",
        "Random direction +0.5×",
        "Random feature +0.5×",
        "Wrong sign −0.5×",
        "Plain prompt",
        "Reconstruction only",
    ]
    assert article.locator(".doses mark").first.inner_text() == "cat"
    article.get_by_text("She opened the letter").first.click()
    assert article.locator(".doses .given").first.inner_text() == "She opened the letter:"
    assert article.locator(".doses .given").count() == 12


def test_a_table_of_a_vocabulary_has_the_figures_that_there_are(shown: Visit) -> None:
    section = shown(sample_steering("", vocabulary=True))
    table = section.locator("#steering-vocabulary")
    assert table.locator("thead th").all_inner_texts() == ["Arm", "share kept", "perplexity"]
    assert table.locator("td").all_inner_texts() == ["0.12", "9.1", "0.8\n[0.7, 0.9]", "–"]


def test_without_a_vocabulary_nothing_speaks_of_one(shown: Visit) -> None:
    section = shown(sample_steering(""))
    assert not section.locator("#vocabulary").is_visible()
    assert section.locator("#steering-vocabulary").count() == 0


def test_hostile_text_is_only_text(shown: Visit) -> None:
    section = shown(sample_steering(HOSTILE, vocabulary=True))
    page = section.page
    assert page.locator("img").count() == 0
    assert page.title() == "maker/model: blocks.9.hook_resid_post"
    for part in ("#steering-headline", "#steering-criterion", "#steering-vocabulary"):
        assert "<img src=x" in section.locator(part).inner_text()
    article = section.locator(".steer").nth(2)
    for part in (".told", ".checks", ".chips", ".doses"):
        assert "<img src=x" in article.locator(part).inner_text()


def test_steering_of_no_feature_is_not_shown(shown: Visit) -> None:
    section = shown({**sample_steering(""), "features": []})
    assert not section.is_visible()
