"""A run's dictionaries compared: the table, the recommended one, the files that show them."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.figures import compared, made_figures
from support.files import unseal
from support.world import random_dictionary

import sae
from sae.base.errors import UserError
from sae.figures import SETTINGS, Figures
from sae.metrics import METRICS
from sae.pages.compare import compare_again, training_curves, write_comparison
from sae.pages.pareto import Pareto, as_csv, as_text, points
from sae.publishing.card.figures import figures_section
from sae.run import Run


def places(*dictionaries: Figures) -> list[tuple[str, str]]:
    return [(point.series, point.label) for point in points(dictionaries)]


def test_the_most_faithful_of_the_sparse_is_recommended() -> None:
    three = (
        made_figures("dense", 90, 0.9),
        made_figures("good", 50, 0.8),
        made_figures("sparse", 10, 0.5),
    )
    for max_l0, name in ((60, "good"), (90, "dense"), (5, "sparse")):
        assert compared(*three, max_l0=max_l0).recommended.id == name
    assert "at most 60;" in compared(*three, max_l0=60).criterion


def test_the_criterion_warns_where_hooks_differ() -> None:
    one, other = made_figures("a"), made_figures("b", hook_name="blocks.2.hook_resid_post")
    assert "within a hook" in compared(one, other).criterion
    assert "within a hook" not in compared(one).criterion


def test_points_are_labelled_by_what_was_swept() -> None:
    assert places(
        made_figures("a", l1_coefficient=2.0),
        made_figures("b", l1_coefficient=0.5),
        made_figures("c", architecture="jumprelu", training_architecture="batchtopk", k=32),
        made_figures("d", architecture="jumprelu", l1_coefficient=None, target_l0=50.0),
        made_figures("e", architecture="jumprelu", l0_coefficient=3.0),
    ) == [
        ("standard", "λ = 2"),
        ("standard", "λ = 0.5"),
        ("batchtopk", "k = 32"),
        ("jumprelu", "target = 50"),
        ("jumprelu", "λ = 3"),
    ]


def test_what_differs_besides_makes_a_series_and_seeds_share_one() -> None:
    found = places(
        *(
            made_figures(f"{width}-{k}-{seed}", k=k, d_sae=width, seed=seed)
            for width in (64, 4096)
            for k in (16, 32)
            for seed in (0, 1)
        )
    )
    narrow, wide = "standard, 64 latents", "standard, 4,096 latents"
    expected = [(series, f"k = {k}") for series in (narrow, wide) for k in (16, 32)]
    assert found == [place for place in expected for _ in range(2)]
    assert places(made_figures("a", lr=0.001, k=8), made_figures("b", lr=0.003, k=8)) == [
        ("standard", "lr 0.001"),
        ("standard", "lr 0.003"),
    ]


def test_what_nothing_known_tells_apart_is_told_by_its_name() -> None:
    assert places(made_figures("weak"), made_figures("strong")) == [
        ("standard", "weak"),
        ("standard", "strong"),
    ]


def test_the_terminal_table_is_aligned_for_long_names() -> None:
    long = "jumprelu-16384-l0-50-to-blocks.9.hook_mlp_out"
    pareto = compared(
        *(made_figures(n, l0, n_rows=4096) for n, l0 in (("a", 5), (long, 123.4)))
    )
    header, *lines, measured, stated = as_text(pareto).splitlines()
    assert [line[:2] for line in lines] == ["* ", "  "]
    assert len({len(line) for line in [header, *lines]}) == 1
    for title in ("L0", "Expl. var.", "Dead"):
        end = header.index(title) + len(title)
        assert all(line[end - 1] != " " and line[end : end + 1] in " " for line in lines)
    assert "CE score" not in header
    assert "4,096 held-out rows" in measured
    assert stated == f"* recommended: {pareto.criterion}"


def test_what_could_not_be_measured_is_said_with_its_reason_wherever_figures_are() -> None:
    why = {"ce_loss_score": "zeros raise CE by 0.001 nats a token, no more than chance"}
    one = replace(made_figures("a", ce_loss_without_sae=5.0), not_measurable=why)
    flat = one.to_json()
    assert flat["ce_loss_score"] is None
    assert flat["not_measurable"] == why
    assert Figures.from_json(json.loads(json.dumps(flat))) == one
    header, line, said = as_text(compared(one)).splitlines()
    assert "CE score" in header
    assert "–" in line
    assert said == f"  – CE score is not measurable: {why['ce_loss_score']}"
    assert "not_measurable" in Pareto.for_page(compared(one))["dictionaries"][0]
    assert next(csv.DictReader(io.StringIO(as_csv(compared(one)))))["ce_loss_score"] == ""
    card = figures_section(random_dictionary(), [one], None, None)
    assert f"| not measurable: {why['ce_loss_score']} |" in card


def test_a_single_dictionary_is_not_recommended_over_anything() -> None:
    assert "*" not in as_text(compared(made_figures("only")))


def test_the_csv_has_one_line_a_dictionary_and_the_trained_architecture() -> None:
    one = made_figures("a,b", lr=0.001, variance=0.7)
    other = made_figures("c", architecture="jumprelu", training_architecture="x")
    found = list(csv.DictReader(io.StringIO(as_csv(compared(one, other)))))
    assert {*SETTINGS, *METRICS, "hook_name", "training_seconds"} <= set(found[0])
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
    found = training_curves(Run.at(tmp_path), ["a", "b", "not trained here"], "a")
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
    run = tmp_path_factory.mktemp("pareto") / "run"
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


def copied(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder / "run")
    return folder / "run"


@pytest.mark.slow
def test_evaluation_ends_with_a_comparison_of_the_run(evaluated: Path) -> None:
    pareto = json.loads((evaluated / "pareto.json").read_text())
    rows = {entry["id"]: entry for entry in pareto["dictionaries"]}
    assert set(rows) == {"weak", "strong", "stepped"}
    read = Pareto.read(evaluated / "pareto.json")
    assert pareto["recommended"] == read.recommended.id
    assert pareto["criterion"] == read.criterion
    assert rows["stepped"]["l0_coefficient"] == 3.0
    assert rows["stepped"]["training_architecture"] == "jumprelu"
    assert "l0_coefficient" not in rows["weak"]
    assert rows["weak"]["lr"] > 0
    assert rows["weak"]["seed"] == 42
    assert rows["weak"]["training_seconds"] > 0
    assert (evaluated / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert len((evaluated / "pareto.csv").read_text().splitlines()) == 4
    report = json.loads((evaluated / "report.json").read_text())
    assert report["chosen"]["id"] == pareto["recommended"]
    assert report["chosen"]["criterion"] == pareto["criterion"]
    assert "stepped" in (evaluated / "report.html").read_text()


def test_another_l0_limit_recommends_another_and_measures_nothing_again(
    evaluated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (evaluated / "evals" / "weak.json").read_bytes()
    pareto = Pareto.read(evaluated / "pareto.json")
    sparsest = min(pareto.dictionaries, key=lambda one: one.values["l0"])
    found = sae.eval(run=str(evaluated), n_behaviour_tokens=128, max_l0=1e-3)
    assert (evaluated / "evals" / "weak.json").read_bytes() == before
    assert len(found) == 3
    again = json.loads((evaluated / "pareto.json").read_text())
    assert again["recommended"] == sparsest.id
    said = capsys.readouterr().err
    assert "3 of 3 are finished already" in said
    assert f"* {sparsest.id}" in said
    assert "* recommended: the highest explained variance" in said


def test_a_comparison_that_is_as_it_was_is_not_shown_again(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.at(copied(evaluated, tmp_path))
    compare_again(run, 60.0)
    capsys.readouterr()
    compare_again(run, 60.0)
    said = capsys.readouterr().err
    assert "pareto.csv are as they were" in said
    assert "recommended" not in said
    compare_again(run, 1e-3)
    assert "* recommended" in capsys.readouterr().err


def test_older_figures_that_say_less_are_compared_too(evaluated: Path, tmp_path: Path) -> None:
    run = copied(evaluated, tmp_path)
    path = run / "evals" / "weak.json"
    figures = json.loads(path.read_text())
    for name in ("training_architecture", "lr", "seed", "cossim", "hook_name_out"):
        del figures[name]
    unseal(path.parent)
    path.write_text(json.dumps(figures | {"l1_coefficient": None, "unheard_of": 3}))
    pareto = write_comparison(Run.at(run), 60.0, ["weak", "strong"])
    assert {one.id for one in pareto.dictionaries} == {"weak", "strong"}


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ([], "it holds no record"),
        ({"id": "weak"}, "it has no architecture"),
        ({"l0": "many"}, "its l0 is 'many'"),
        ({"explained_variance": None}, "it has no explained_variance"),
        ({"n_rows": 1.5}, "its n_rows is '1.5'"),
        ({"density_histogram": [1]}, "its density_histogram is '[1]'"),
    ],
)
def test_a_damaged_record_is_refused_in_a_sentence(
    evaluated: Path, tmp_path: Path, broken: Any, why: str
) -> None:
    path = tmp_path / "weak.json"
    whole = json.loads((evaluated / "evals" / "weak.json").read_text())
    found = whole | broken if isinstance(broken, dict) and "id" not in broken else broken
    path.write_text(json.dumps(found))
    with pytest.raises(UserError) as refused:
        Figures.read(path)
    assert str(refused.value) == f"{path} is not a file that sae eval writes, {why}; delete it"


def test_a_damaged_comparison_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "pareto.json"
    whole = compared(made_figures("a")).to_json()
    for broken in ([], {}, *({**whole, "dictionaries": bad} for bad in (3, [], [{}]))):
        path.write_text(json.dumps(broken))
        with pytest.raises(
            UserError, match=r"pareto.json (is n|does not).*; run sae eval again"
        ):
            Pareto.read(path)


def test_a_demo_keeps_its_fuller_page(evaluated: Path, tmp_path: Path) -> None:
    run = copied(evaluated, tmp_path)
    (run / "report.json").write_text(json.dumps({"steering": {"features": []}}))
    (run / "report.html").write_text("the demo's")
    write_comparison(Run.at(run), 60.0)
    assert (run / "report.html").read_text() == "the demo's"
    assert json.loads((run / "report.json").read_text()) == {"steering": {"features": []}}


def test_a_run_without_figures_is_refused_in_a_sentence(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run / "dictionaries", run / "dictionaries")
    with pytest.raises(UserError, match="no evaluated dictionaries; run: sae eval run="):
        write_comparison(Run.at(run), 60.0)
