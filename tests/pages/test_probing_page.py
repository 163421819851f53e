"""The page of probing: whole, narrow enough for a phone, and nothing in it acts."""

import pytest
from support.atlas_samples import HOSTILE
from support.browser import needs_browser

from sae.pages.probing import write_probing_page
from sae.pages.probing_picture import draw_probing
from sae.probing.table import PROBES

HOOKS = [f"blocks.{i}.hook_resid_post" for i in range(4)]


def sample(task="words"):
    rows = []
    for layer, hook in enumerate(HOOKS):
        for inputs, k in (("raw", None), ("difference_of_means", None), ("features", 5),
                          ("features", None), ("random_decoder", None)):  # fmt: skip
            rows.append(
                {
                    "task": task, "hook_name": hook, "layer": layer, "pool": "mean", "k": k,
                    "inputs": inputs, "n_train": 40, "n_test": 30, "auc": 0.6 + 0.1 * layer,
                    "auc_low": 0.5 + 0.1 * layer, "auc_high": 0.7 + 0.1 * layer,
                    "accuracy": 0.6, "accuracy_low": 0.5, "accuracy_high": 0.7,
                    "permuted_auc": 0.51, "chosen": True, "best": layer == 3,
                }
            )  # fmt: skip
    rows[15] |= {
        "steer_kl": 0.1, "steer_kl_random": 0.01, "ablate_kl": 0.2, "ablate_kl_random": 0.02,
        "causal_n": 30,
    }  # fmt: skip
    curve = {"inputs": "raw", "n_train": 8, "auc": 0.6, "auc_low": 0.5, "auc_high": 0.7,
             "permuted_auc": 0.5}  # fmt: skip
    about = {"name": task, "labels": ["no", task], "n_train": 40, "n_test": 30,
             "n_elsewhere": 0, "n_cut": 2, "learning_curves": [curve]}  # fmt: skip
    summary = {
        "name": "sample", "model": "a model", "statement": "Read this.", "n_permuted": 8,
        "causal": True, "hooks": HOOKS, "tasks": [about],
        "left_out": [{"task": "other", "why": task}],
        "dictionary": {"name": "d", "hook_name": HOOKS[1], "control_k": 7, "l0": 7.2},
    }  # fmt: skip
    columns = {name: [row.get(name) for row in rows] for name in PROBES.columns}
    return summary, PROBES.table(columns)


@needs_browser
@pytest.mark.parametrize("width", [420, 1280])
def test_the_page_is_as_wide_as_the_screen(visit, tmp_path, width):
    write_probing_page(tmp_path, *sample())
    page = visit(tmp_path / "index.html", viewport={"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("svg path").count() == 3
    assert page.locator("svg circle").count() == 8
    assert page.get_by_text("Read this.").is_visible()


@needs_browser
def test_texts_of_a_data_set_are_shown_and_do_nothing(visit, tmp_path):
    write_probing_page(tmp_path, *sample(HOSTILE))
    page = visit(tmp_path / "index.html")
    assert page.locator("h2").first.inner_text()
    assert page.locator("main script, main img").count() == 0


def test_controls_stand_beside_every_figure_on_the_page(tmp_path):
    write_probing_page(tmp_path, *sample())
    text = (tmp_path / "index.html").read_text()
    assert text.count("0.90 <small>[0.80, 1.00]</small>") == 5
    assert "<td>0.51</td>" in text
    assert "no later probe was read" in text
    assert "What was left out" in text


def test_the_picture_is_drawn_whatever_a_task_is_called(tmp_path):
    draw_probing(*sample("cost in $ and $"), tmp_path / "layers.png")
    assert (tmp_path / "layers.png").stat().st_size > 5000
