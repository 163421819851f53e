"""The page of evidence in a browser: figures beside controls, reasons, several dictionaries."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.browser import Visit, needs_browser
from support.world import HOOK, random_dictionary

from sae.base import UserError, sealed_path, write_json
from sae.dictionary.files import save_dictionary
from sae.evidence import Evidence
from sae.findings import Finding
from sae.pages.evidence import write_evidence
from sae.run import Run

HOSTILE = "<img src=x onerror=alert(1)>"


def figures(value: float) -> tuple[Finding, ...]:
    ends = {"low": value - 0.01, "high": value + 0.01}
    floor = {"floor": 0.0, "floor_of": "the mean"}
    return (
        Finding(key="l0", value=32.0, n=900, unit="rows"),
        Finding(key="explained_variance", value=value, n=900, unit="rows", **floor, **ends),
        Finding(key="sparse_probing", value=value, n=320, unit="texts", of="k=1", **ends),
        Finding(key="sparse_probing", value=value, n=320, unit="texts", of="k=5", **ends),
        Finding(key="stability", why_not=f"{HOSTILE} has no second seed"),
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.at(tmp_path / "run")
    found = random_dictionary("topk", hook_name=HOOK, model_name="org/lm")
    for name, control, value in (
        ("one", None, 0.7),
        ("one-frozen-decoder", "frozen_decoder", 0.4),
        ("two & more", None, 0.6),
    ):
        save_dictionary(found, run.dictionary(name))
        evidence = Evidence(
            id=name,
            recipe="topk",
            control=control,
            digest="1",
            dictionary_digest=found.digest,
            hook_name=HOOK,
            data=HOSTILE,
            seconds={"stability": 2.5},
            findings=figures(value),
        )
        with sealed_path(run.evidence(name)) as temporary:
            write_json(temporary, evidence.to_json())
    return run


@pytest.mark.slow
@needs_browser
def test_figures_stand_beside_controls_with_a_verdict(run: Run, visit: Visit) -> None:
    page = visit(write_evidence(run))
    assert page.locator(".figure").count() == 4
    shown = page.locator(".figure").nth(1).inner_text()
    for words in ("0.700", "0.690 to 0.710", "on 900 rows", "floor: 0.000, the mean", "better"):
        assert words in shown
    assert "frozen decoder: 0.400" in shown
    assert page.locator(".figure").nth(1).locator("circle").count() == 2
    assert page.inner_text("#reasons") == f"Stability: {HOSTILE} has no second seed."
    assert "control=[soft_frozen,frozen_encoder,random_model]" in page.inner_text("#missing")
    assert page.locator("img").count() == 0


@pytest.mark.slow
@needs_browser
def test_each_dictionary_has_an_address_and_controls_have_none(run: Run, visit: Visit) -> None:
    page: Any = visit(write_evidence(run))
    assert page.locator("#names option").all_inner_texts() == ["one", "two & more"]
    page.select_option("#names", "two & more")
    page.wait_for_selector("text=no control was trained")
    assert page.url.endswith("#two%20%26%20more")
    page.reload()
    assert "two & more" in page.inner_text("#about")


def test_evidence_of_weights_that_have_changed_is_left_out(run: Run) -> None:
    shutil.rmtree(run.dictionary("one"))
    other = random_dictionary("jumprelu", hook_name=HOOK, model_name="org/lm")
    save_dictionary(other, run.dictionary("one"))
    page = write_evidence(run).read_text()
    told = json.loads(page.split('id="data-report">')[1].split("</script>")[0])
    assert [one["id"] for one in told["dictionaries"]] == ["two & more"]


def test_without_any_evidence_it_is_said_how_to_get_some(run: Run) -> None:
    for name in ("one", "two & more", "one-frozen-decoder"):
        run.evidence(name).unlink()
    with pytest.raises(UserError, match=r"run: sae eval run=.* suite=standard"):
        write_evidence(run)
