"""The table of metrics: what is computed is in it, and what is in it is shown everywhere."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.figures import compared, made_figures
from support.metric_page import page
from support.world import random_dictionary

import sae
from sae.figures import Figures
from sae.metrics import METRICS, Metric
from sae.pages.page import render_page
from sae.pages.pareto import Pareto, as_csv, as_text
from sae.pages.pareto_picture import draw_pareto
from sae.publishing.card import Export, model_card

ROOT = Path(__file__).parents[2]
FAKE = Metric(
    key="surprise",
    title="Surprise",
    meaning="how often a reader is astonished",
    formula="mean [astonished]",
    scale="0: never",
    higher_is_better=False,
    form=".2%",
    where=("table", "picture", "tile"),
)


@pytest.fixture
def surprising(monkeypatch: pytest.MonkeyPatch) -> Pareto:
    """Two dictionaries with a figure that the table of metrics has for this test alone."""
    monkeypatch.setitem(METRICS, FAKE.key, FAKE)
    return compared(
        made_figures("a", 20.0, surprise=0.1234), made_figures("b", 40.0, surprise=0.5)
    )


@pytest.mark.slow
def test_evaluation_computes_every_metric_and_nothing_else(
    tiny_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    (figures,) = sae.eval(run=str(run), dictionary="weak", n_behaviour_tokens=64)
    assert {*figures.values, *figures.not_measurable} == set(METRICS)
    flat = json.loads((run / "evals" / "weak.json").read_text())
    assert Figures.from_json(flat) == figures
    assert {key: flat[key] for key in METRICS if flat[key] is not None} == figures.values


def test_a_figure_that_the_table_does_not_know_is_not_written() -> None:
    with pytest.raises(ValueError, match=r"surprise of values: describe it in sae\.metrics"):
        replace(made_figures("a"), values={"surprise": 1.0})


def test_a_new_metric_is_in_every_table(surprising: Pareto) -> None:
    header, first, _ = as_text(surprising).splitlines()[:3]
    assert header.split()[-1] == "Surprise"
    assert first.split()[-1] == "12.34%"
    lines = [line.split(",") for line in as_csv(surprising).splitlines()]
    assert lines[1][lines[0].index("surprise")] == "0.1234"
    hook_name = "blocks.1.hook_resid_post"
    dictionary = random_dictionary("standard", hook_name=hook_name, model_name="org/lm")
    card = model_card(dictionary, surprising.dictionaries[0], 48, Export(folder="weights"))
    row = "| Surprise: how often a reader is astonished, `mean [astonished]` | 0.1234 |"
    assert row in card.splitlines()


@pytest.mark.slow
def test_a_new_metric_has_a_panel_only_if_it_asks_for_one(
    surprising: Pareto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def panels() -> int:
        path = tmp_path / "pareto.png"
        draw_pareto(surprising, path)
        return (int.from_bytes(path.read_bytes()[16:20]) - 96) // 752

    asked = panels()
    monkeypatch.setitem(METRICS, FAKE.key, replace(FAKE, where=()))
    assert panels() == asked - 1 == 2


def test_a_new_metric_is_in_the_pages_and_in_the_documentation(surprising: Pareto) -> None:
    report = {"model_name": "m", "hook_name": "h", "d_in": 8, **surprising.for_page()}
    found = re.search(r'id="data-report">(.*?)</script>', render_page(report, [], {}))
    assert found
    data = json.loads(found[1])
    assert data["metrics"][-1]["title"] == "Surprise"
    assert data["dictionaries"][0]["surprise"] == 0.1234
    assert (
        "| `surprise` | **Surprise**: how often a reader is astonished | `mean [astonished]` |"
        in page()
    )


def test_no_page_and_no_script_names_a_metric_but_to_choose_and_to_draw() -> None:
    """What they show comes with the data, so that a metric is described in one place."""
    allowed = {"l0"}
    for path in (ROOT / "sae" / "reporting").rglob("*.js"):
        # A training's own figures have names of their own, such as `metrics/l0`.
        words = set(re.findall(r"(?<![\w/])\w+", path.read_text(encoding="utf-8")))
        assert words & set(METRICS) <= allowed, path


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_a_metric_is_described_in_full(metric: Metric) -> None:
    assert metric.meaning[0].islower() or metric.meaning.startswith(("CE", "KL", "L"))
    assert not metric.meaning.endswith(".")
    assert "|" not in metric.formula + metric.meaning + metric.scale, "ends a cell of a table"
    assert format(0.5, metric.form)
    assert len(metric.short or metric.title) <= 24


def test_the_page_of_metrics_is_up_to_date(check_page: Callable[[Path, str], None]) -> None:
    check_page(ROOT / "docs" / "metrics.md", page())
