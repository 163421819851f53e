"""The front of a run: the table, the recommended dictionary, and the files that show them."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import sae
from sae.base.errors import UserError
from sae.commands.front import training_curves, write_front
from sae.reporting.front_table import (
    COLUMNS,
    as_csv,
    as_text,
    labelled,
    recommended,
    rule,
)


def row(name: str, l0: float = 30.0, variance: float = 0.8, **others: Any) -> dict[str, Any]:
    return {
        "id": name,
        "architecture": "standard",
        "d_sae": 64,
        "hook_name": "blocks.1.hook_resid_post",
        "l0": l0,
        "explained_variance": variance,
        "dead_fraction": 0.25,
    } | others


def places(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(entry["series"], entry["label"]) for entry in labelled(rows)]


def test_the_most_faithful_of_the_sparse_is_recommended() -> None:
    rows = [row("dense", 90, 0.9), row("good", 50, 0.8), row("sparse", 10, 0.5)]
    assert recommended(rows, 60) == "good"
    assert recommended(rows, 90) == "dense"
    assert recommended(rows, 5) == "sparse"
    assert "at most 60;" in rule(rows, 60)


def test_the_rule_warns_where_hooks_differ() -> None:
    rows = [row("a"), row("b", hook_name="blocks.2.hook_resid_post")]
    assert "within a hook" in rule(rows, 60)
    assert "within a hook" not in rule(rows[:1], 60)


def test_points_are_labelled_by_what_was_swept() -> None:
    rows = [
        row("a", l1_coefficient=2.0),
        row("b", l1_coefficient=0.5),
        row("c", architecture="jumprelu", training_architecture="batchtopk", k=32),
        row("d", architecture="jumprelu", l1_coefficient=None, target_l0=50.0),
        row("e", architecture="jumprelu", l0_coefficient=3.0),
    ]
    assert places(rows) == [
        ("standard", "λ = 2"),
        ("standard", "λ = 0.5"),
        ("batchtopk", "k = 32"),
        ("jumprelu", "target = 50"),
        ("jumprelu", "λ = 3"),
    ]


def test_what_differs_besides_makes_a_series_and_seeds_share_one() -> None:
    rows = [
        row(f"{width}-{k}-{seed}", k=k, d_sae=width, seed=seed)
        for width in (64, 4096)
        for k in (16, 32)
        for seed in (0, 1)
    ]
    narrow, wide = "standard, 64 latents", "standard, 4,096 latents"
    expected = [(series, f"k = {k}") for series in (narrow, wide) for k in (16, 32)]
    assert places(rows) == [place for place in expected for _ in range(2)]
    assert places([row("a", lr=0.001, k=8), row("b", lr=0.003, k=8)]) == [
        ("standard", "lr 0.001"),
        ("standard", "lr 0.003"),
    ]


def test_what_nothing_known_tells_apart_is_told_by_its_name() -> None:
    assert places([row("weak"), row("strong")]) == [
        ("standard", "weak"),
        ("standard", "strong"),
    ]


def test_the_terminal_table_is_aligned_for_long_names() -> None:
    rows = [row("a", 5.0), row("jumprelu-16384-l0-50-to-blocks.9.hook_mlp_out", 123.4)]
    header, *lines, measured, stated = as_text(
        [entry | {"n_rows": 4096} for entry in rows], "a", "the rule."
    ).splitlines()
    assert [line[:2] for line in lines] == ["* ", "  "]
    assert len({len(line) for line in [header, *lines]}) == 1
    for title in ("L0", "expl. var.", "dead"):
        end = header.index(title) + len(title)
        assert all(line[end - 1] != " " and line[end : end + 1] in " " for line in lines)
    assert "CE score" not in header
    assert "4,096 held-out rows" in measured
    assert stated == "* recommended: the rule."


def test_a_single_dictionary_is_not_recommended_over_anything() -> None:
    assert "*" not in as_text([row("only")], "only", "the rule.")


def test_the_csv_has_one_line_a_dictionary_and_the_trained_architecture() -> None:
    rows = [row("a,b", lr=0.001), row("c", architecture="jumprelu", training_architecture="x")]
    found = list(csv.DictReader(io.StringIO(as_csv(rows, "c"))))
    assert tuple(found[0]) == COLUMNS
    assert [entry["id"] for entry in found] == ["a,b", "c"]
    assert [entry["architecture"] for entry in found] == ["standard", "x"]
    assert [entry["recommended"] for entry in found] == ["False", "True"]
    assert (found[0]["lr"], found[0]["k"], found[0]["l0"]) == ("0.001", "", "30.0")


def test_histograms_over_time_are_kept_for_the_chosen_dictionary_alone(tmp_path: Path) -> None:
    key = "plots/feature_density_line_chart"
    for name in ("a", "b"):
        lines: list[dict[str, Any]] = [
            {"step": step, "metrics/l0": 9.0} for step in range(1, 1001)
        ]
        lines[500:500] = [{"step": 500, "sparsity/l0": 8.0, key: {"counts": [1]}}]
        path = tmp_path / "training" / name / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = training_curves(tmp_path, ["a", "b", "not trained here"], "a")
    assert found["not trained here"] == []
    for name in ("a", "b"):
        assert len(found[name]) == 201
        steps = [line["step"] for line in found[name]]
        assert steps == sorted(steps)
        (look,) = [line for line in found[name] if "sparsity/l0" in line]
        assert (key in look) == (name == "a")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> Path:
    """A copy of the tiny run with a third, thresholded dictionary, evaluated."""
    run = tmp_path_factory.mktemp("front") / "run"
    shutil.copytree(tiny_run, run)
    sae.train(
        run=str(run),
        name="stepped",
        sae=sae.JumpReLUConfig(d_sae=64, penalty="step", l0_coefficient=3.0, target_l0=None),
        training_tokens=20_000,
        train_batch_size_tokens=256,
    )
    sae.eval(run=str(run), n_behaviour_tokens=128)
    return run


def test_evaluation_ends_with_the_front_of_the_run(evaluated: Path) -> None:
    front = json.loads((evaluated / "front.json").read_text())
    rows = {entry["id"]: entry for entry in front["rows"]}
    assert set(rows) == {"weak", "strong", "stepped"}
    assert front["recommended"] == recommended(front["rows"], 60.0)
    assert front["rule"] == rule(front["rows"], 60.0)
    assert rows["stepped"]["l0_coefficient"] == 3.0
    assert rows["stepped"]["training_architecture"] == "jumprelu"
    assert "l0_coefficient" not in rows["weak"]
    assert rows["weak"]["lr"] > 0
    assert rows["weak"]["seed"] == 42
    assert rows["weak"]["training_seconds"] > 0
    assert (evaluated / "front.png").read_bytes().startswith(b"\x89PNG")
    assert len((evaluated / "front.csv").read_text().splitlines()) == 4
    report = json.loads((evaluated / "report.json").read_text())
    assert report["chosen"] == {"id": front["recommended"], "rule": front["rule"]}
    assert "stepped" in (evaluated / "report.html").read_text()


def test_another_l0_limit_recommends_another_and_measures_nothing_again(
    evaluated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (evaluated / "evals" / "weak.json").read_bytes()
    rows = json.loads((evaluated / "front.json").read_text())["rows"]
    sparsest = min(rows, key=lambda entry: entry["l0"])
    found = sae.eval(run=str(evaluated), n_behaviour_tokens=128, max_l0=1e-3)
    assert (evaluated / "evals" / "weak.json").read_bytes() == before
    assert len(found) == 3
    assert json.loads((evaluated / "front.json").read_text())["recommended"] == sparsest["id"]
    said = capsys.readouterr().err
    assert "3 of 3 are there already" in said
    assert f"* {sparsest['id']}" in said
    assert "* recommended: the highest explained variance" in said


def test_figures_of_before_the_front_are_compared_too(evaluated: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(evaluated, run)
    path = run / "evals" / "weak.json"
    figures = json.loads(path.read_text())
    for name in ("training_architecture", "lr", "seed"):
        del figures[name]
    path.write_text(json.dumps(figures))
    front = write_front(run, 60.0, ["weak", "strong"])
    assert {entry["id"] for entry in front["rows"]} == {"weak", "strong"}


def test_a_demo_keeps_its_fuller_page(evaluated: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(evaluated, run)
    (run / "report.json").write_text(json.dumps({"steering": []}))
    (run / "report.html").write_text("the demo's")
    write_front(run, 60.0)
    assert (run / "report.html").read_text() == "the demo's"
    assert json.loads((run / "report.json").read_text()) == {"steering": []}


def test_a_run_without_figures_is_refused_in_a_sentence(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run / "dictionaries", run / "dictionaries")
    with pytest.raises(UserError, match="no evaluated dictionaries; run: sae eval run="):
        write_front(run, 60.0)
