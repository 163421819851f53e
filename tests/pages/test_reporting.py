"""The report page and the picture of sparsity against fidelity."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.figures import compared, made_figures
from support.steering_sample import sample_steering

from sae.atlas.subset import Example, ExampleContext
from sae.figures import Figures
from sae.pages.page import render_page
from sae.pages.pareto_picture import draw_pareto

HOSTILE = "</script><script>document.title='broken'</script><img src=x onerror=alert(1)>\u2028"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


def dictionary(coefficient: float, l0: float, **others: Any) -> Figures:
    about: dict[str, Any] = {
        "d_sae": 12,
        "l1_coefficient": coefficient,
        "ce_loss_score": 0.9,
        "dead_fraction": 1 / 12,
        "density_histogram": {"log10_edges": [-4, -2, 0], "counts": [3, 8]},
    }
    name = f"standard-12-l1-{coefficient:g}"
    return made_figures(name, l0, 0.5 + l0 / 100, **about | others)


def example(feature: int, word: str) -> Example:
    context = ExampleContext(
        ["A", f" {word}", HOSTILE, " sat"], 1, [0.0, 20.0 + feature, 0.0, 3.0]
    )
    return Example(
        feature,
        f"{word} {HOSTILE}",
        0.01 * feature,
        20.0 + feature,
        [f" {word}", HOSTILE],
        [context],
    )


def sample_examples() -> list[Example]:
    words = ["cat", "theorem", "river", "copper", "violin", "harbour"]
    return [example(feature, word) for feature, word in enumerate(words, start=1)]


def sample_report() -> dict[str, Any]:
    found = dictionary(2.0, 11.0), dictionary(5.0, 4.0), dictionary(9.0, 0.0)
    return {
        "run": "runs/demo",
        "model_name": f"maker/model{HOSTILE}",
        "hook_name": "blocks.9.hook_resid_post",
        "d_in": 8,
        "cache": {"n_tokens": 4096, "tokens_per_second": None, "data": HOSTILE},
        **compared(*found).for_page(),
        "chosen": {"id": "standard-12-l1-2", "criterion": HOSTILE},
        "atlases": {"standard-12-l1-2": "atlas/standard-12-l1-2/index.html"},
        "steering": sample_steering(),
        "timings": {"harvest": 60.0, "train": 120.0},
        "export": {
            "folder": "runs/demo/export",
            "files": [
                {"name": "blocks.9.hook_resid_post/sae_weights.safetensors", "bytes": 12}
            ],
            "load": ["import sae"],
        },
        "versions": {"sae-atlas": "0.1.0"},
    }


def sample_curves() -> dict[str, list[dict[str, float]]]:
    return {
        "standard-12-l1-2": [
            {"step": step, "losses/mse_loss": 9.0 / step, "metrics/l0": float("nan")}
            for step in (1, 2, 3)
        ]
    }


def sample_page() -> str:
    return render_page(sample_report(), sample_examples(), sample_curves())


def embedded(page: str, name: str) -> Any:
    found = re.search(rf'<script type="application/json" id="data-{name}">(.*?)</script>', page)
    assert found
    return json.loads(found[1])


def opened(page: str, folder: Path, address: str = "", driver: str = "") -> str:
    """The document after its script ran (and `driver` after it); fails on console errors."""
    assert CHROMIUM
    path = folder / "report.html"
    path.write_text(page.replace("</body>", f"<script>{driver}</script></body>"), "utf-8")
    flags = "--headless --no-sandbox --disable-gpu --enable-logging=stderr --dump-dom"
    command = [CHROMIUM, *flags.split(), "--virtual-time-budget=2000"]
    command += [f"--user-data-dir={folder / 'profile'}", f"{path.as_uri()}{address}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout


def section(document: str, name: str) -> str:
    found = re.search(rf'<section id="{name}".*?</section>', document, re.DOTALL)
    assert found
    return found[0]


def test_hostile_text_cannot_break_out_of_the_page() -> None:
    page = sample_page()
    assert "<img" not in page
    assert page.count("<script") == page.count("</script>") == 4
    assert embedded(page, "report")["chosen"]["criterion"] == HOSTILE
    assert HOSTILE in embedded(page, "features")[0]["top_tokens"]


def test_a_slot_name_in_the_data_is_only_text() -> None:
    report = sample_report() | {"chosen": {"id": "x", "criterion": "{{script}} {{nothing}}"}}
    page = render_page(report, [], {})
    assert embedded(page, "report")["chosen"]["criterion"] == "{{script}} {{nothing}}"


def test_the_page_refers_to_no_other_host_and_forbids_itself_to() -> None:
    page = sample_page()
    addresses = re.findall(r"""(?:src|href|action)\s*=\s*["']?([^"'\s>]+)""", page)
    assert addresses
    assert not [address for address in addresses if re.match(r"(\w+:)?//", address)]
    assert not re.search(r"@import|url\(", page)
    assert "default-src 'none'" in page


def test_what_json_cannot_say_becomes_null() -> None:
    assert embedded(sample_page(), "curves")["standard-12-l1-2"][0]["metrics/l0"] is None


@pytest.mark.slow
@needs_browser
def test_cards_show_a_few_features_and_lead_to_the_atlas(tmp_path: Path) -> None:
    document = opened(sample_page(), tmp_path)
    shown = section(document, "features")
    atlas = "atlas/standard-12-l1-2/index.html"
    assert f'<a class="door primary" id="atlas" href="{atlas}">' in shown
    assert re.findall(r'<h3><a href="([^"]*)">(\w+)', shown)[2] == (f"{atlas}#f=3", "river")
    assert shown.count('class="card"') == 6
    assert "fires on 3% of tokens, at most 23" in shown
    assert re.findall(r'<span class="act[^>]*--a: ([\d.]+)[^>]*>([^<]*)', shown)[4:6] == [
        ("1.000", " river"),
        ("0.130", " sat"),
    ]
    assert 'aria-label="Histogram of firing frequency"' in shown
    assert "<title>broken" not in document
    assert "<img" not in document


@needs_browser
def test_a_steered_feature_leads_to_its_page_in_the_atlas(tmp_path: Path) -> None:
    link = '<a href="atlas/standard-12-l1-2/index.html#f=1">Feature 1</a>'
    assert link in section(opened(sample_page(), tmp_path), "steering")


@needs_browser
def test_without_an_atlas_nothing_leads_to_one(tmp_path: Path) -> None:
    report = {key: value for key, value in sample_report().items() if key != "atlases"}
    document = opened(render_page(report, [], {}), tmp_path)
    assert "Features" not in sections(document)
    assert "<h3>Feature 1</h3>" in section(document, "steering")


@needs_browser
def test_an_almost_empty_run_hides_what_it_lacks(tmp_path: Path) -> None:
    report = {"model_name": "m", "hook_name": "h", "d_in": 8}
    document = opened(render_page(report, [], {}), tmp_path)
    assert sections(document) == ["Overview"]


def sweep(**others: Any) -> list[Figures]:
    """Figures of two architectures, crowded as good ones are."""
    standard = [
        dictionary(coefficient, l0, training_architecture="standard", **others)
        for coefficient, l0 in ((1.0, 90.0), (2.0, 50.0), (4.0, 30.0))
    ]
    about: dict[str, Any] = {"training_architecture": "batchtopk", "l1_coefficient": None}
    top_k = [
        dictionary(9.0, k * 0.98, id=f"batchtopk-{k}", k=k, **about | others)
        for k in (30, 50, 90)
    ]
    return [*standard, *top_k]


def sweep_report(rows: list[Figures]) -> dict[str, Any]:
    return {
        "model_name": "maker/model",
        "hook_name": "blocks.9.hook_resid_post",
        "d_in": 8,
        **compared(*rows).for_page(),
        "chosen": {"id": rows[1].id, "criterion": f"the best of them {HOSTILE}"},
        "versions": {"sae-atlas": "0.1.0"},
    }


def sections(document: str) -> list[str]:
    navigation = re.search(r'<nav id="nav".*?</nav>', document, re.DOTALL)
    assert navigation
    return re.findall(r">(\w+)</a>", navigation[0])


@needs_browser
def test_a_sweep_without_features_is_a_page_of_its_own(tmp_path: Path) -> None:
    histogram = {"log10_edges": [-4, -2, 0], "counts": [3, 8]}
    held_out = {"sparsity/l0": 40.0, "plots/feature_density_line_chart": histogram}
    usual = {"losses/mse_loss": 3.0, "metrics/l0": 41.0}
    lines = [{"step": step, **(held_out if step % 2 else usual)} for step in range(1, 7)]
    page = render_page(sweep_report(sweep()), [], {row.id: lines for row in sweep()})
    document = opened(page, tmp_path)
    assert sections(document) == ["Overview", "Pareto", "Training", "Density", "Run"]
    curves = re.search(r'id="multiples">.*?</section>', document, re.DOTALL)
    assert curves
    assert re.findall(r"<figcaption>([^<]*)<", curves[0]) == [
        "Squared error",
        "L0",
        "L0, held out",
    ]
    assert document.count('class="cell"') == 6
    assert "The best of them" in document
    assert "<title>broken" not in document
    tiles = re.search(r'<dl class="tiles".*?</dl>', document, re.DOTALL)
    assert tiles
    assert ">–<" not in tiles[0]
    assert '<a class="skip" href="#features" hidden="">' in document


@needs_browser
def test_figures_that_no_dictionary_has_are_left_out_of_the_page(tmp_path: Path) -> None:
    rows = sweep(ce_loss_score=None)
    document = opened(render_page(sweep_report(rows), [], {}), tmp_path)
    panels = re.search(r'id="pareto-panels".*?</svg></div></figure></div>', document, re.DOTALL)
    assert panels
    assert re.findall(r"<figcaption>([^<]*)<", panels[0]) == [
        "Explained variance",
        "Dead features",
    ]
    table = re.search(r'<table id="dictionaries".*?</table>', document, re.DOTALL)
    assert table
    assert "CE score" not in table[0]


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("width", [390, 1100])
def test_labels_of_a_crowded_picture_lie_apart(tmp_path: Path, width: int) -> None:
    driver = f"""
      document.body.style.width = "{width}px";
      setTimeout(() => {{
        const apart = (a, b) =>
          a.left >= b.right || a.right <= b.left ||
          a.top + 3 >= b.bottom || a.bottom - 3 <= b.top;
        const laps = [...document.querySelectorAll("#pareto-panels svg")].map((svg) => {{
          const labels = [...svg.querySelectorAll(".label")];
          const boxes = labels.map((label) => label.getBoundingClientRect());
          return boxes.filter((a, i) => boxes.slice(i + 1).some((b) => !apart(a, b))).length;
        }});
        const shown = document.querySelectorAll("#pareto-panels .label").length;
        document.body.dataset.log = `${{laps.join()}} ${{shown >= 12}}`;
      }}, 500);
    """
    document = opened(render_page(sweep_report(sweep()), [], {}), tmp_path, driver=driver)
    assert 'data-log="0,0,0 true"' in document


@needs_browser
def test_a_single_dictionary_is_a_table_without_a_picture(tmp_path: Path) -> None:
    row = sweep()[1]
    report = sweep_report(sweep()) | compared(row).for_page()
    document = opened(render_page(report, [], {}), tmp_path)
    assert row.id in document
    assert "pareto-panels" in document
    assert 'aria-label="Explained variance over L0"' not in document
    assert 'class="badge"' not in document


@needs_browser
@pytest.mark.parametrize("width", [420, 1280])
def test_the_page_is_as_wide_as_the_screen(
    visit: Callable[..., Any], tmp_path: Path, width: int
) -> None:
    path = tmp_path / "report.html"
    path.write_text(sample_page(), "utf-8")
    page = visit(path, viewport={"width": width, "height": 900})
    assert page.get_by_text("sae_weights.safetensors").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.locator("#dictionaries").locator("..")
    is_wider = box.evaluate("e => e.scrollWidth > e.clientWidth + 1")
    told = page.locator(f"#{box.get_attribute('aria-describedby')}")
    assert told.is_visible() == is_wider == (width == 420)
    assert "scroll it sideways" in told.text_content()


@pytest.mark.slow
@pytest.mark.parametrize("n_points", [0, 1, 3])
def test_the_picture_is_drawn_as_png_and_nothing_else_is_left(
    tmp_path: Path, n_points: int
) -> None:
    entries = [dictionary(2.0, 11.0), dictionary(5.0, 4.0), dictionary(0.5, 90.0)][:n_points]
    path = tmp_path / "pareto.png"
    # The last has no place on a logarithmic axis.
    draw_pareto(compared(*entries, dictionary(7.0, 0.0)), path)
    picture = path.read_bytes()
    assert picture.startswith(b"\x89PNG")
    panels = 3 if n_points else 1
    assert int.from_bytes(picture[16:20]) == 96 + 752 * panels
    assert list(tmp_path.iterdir()) == [path]
