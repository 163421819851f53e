"""Result files of SAEBench: what is in them, and that SAEBench's own code takes them."""

import json
import sys
from dataclasses import dataclass, replace
from unittest.mock import MagicMock

import pytest
import torch
from support.world import random_dictionary

from sae.base.errors import UserError
from sae.core.fidelity import ReconstructionStatistics, density_histogram
from sae.dictionary import add_reconstruction
from sae.exchange.saebench_results import Measured, read_saebench, write_saebench
from sae.figures import Figures
from sae.findings import Finding

HOOK = "blocks.1.hook_resid_post"


@dataclass(frozen=True)
class Letter:
    letter: str
    features: tuple[int, ...]
    fraction: float
    full: float
    n_words: int


@dataclass(frozen=True)
class Probe:
    task: str
    accuracy: float
    auc: float
    f1: float


def rows(n=300):
    return 3 * torch.randn(n, 32, generator=torch.Generator().manual_seed(1)) + 1


def subject():
    return random_dictionary("topk", model_name="org/lm", hook_name=HOOK)


def figures(dictionary, x):
    statistics = ReconstructionStatistics(dictionary.d_out, dictionary.d_sae)
    add_reconstruction(statistics, dictionary, x, x)
    return Figures(
        id="mine",
        architecture="topk",
        hook_name=HOOK,
        data="text",
        n_rows=len(x),
        density_histogram=density_histogram(statistics.density),
        values=statistics.metrics(),
    )


def measured(dictionary, x):
    meta = Finding(key="meta_explained_variance", value=0.25, n=48, unit="features", floor=0.2)
    return Measured(
        figures=figures(dictionary, x),
        letters=[Letter("a", (3,), 0.25, 0.5, 10), Letter("b", (4, 5), 0.75, 0.0, 8)],
        raw=[Probe("one", 0.9, 0.95, 0.9), Probe("two", 0.7, 0.75, 0.7)],
        features={
            k: [Probe("one", 0.8, 0.9, 0.8), Probe("two", 0.6, 0.5, 0.4)] for k in (1, 5, 16)
        },
        findings=[meta],
        seed=7,
    )


@pytest.fixture
def written(tmp_path):
    dictionary = subject()
    paths = write_saebench(tmp_path, "mine", dictionary, measured(dictionary, rows()))
    return {path.parent.name: path for path in paths}


def test_there_is_a_file_for_each_evaluation_where_saebench_has_it(written):
    assert set(written) == {
        "core",
        "absorption",
        "sparse_probing_sae_probes",
        "meta_structure",
    }
    assert {path.name for path in written.values()} == {"mine_custom_sae_eval_results.json"}


@pytest.mark.parametrize(
    ("evaluation", "model"),
    [
        ("core", "CoreEvalOutput"),
        ("absorption", "AbsorptionEvalOutput"),
        ("sparse_probing_sae_probes", "SparseProbingSaeProbesEvalOutput"),
        ("meta_structure", "MetaStructureEvalOutput"),
    ],
)
def test_saebenchs_own_models_take_every_file(evaluation, model, written, monkeypatch):
    # Only its list of names is asked for, as the default of a setting.
    monkeypatch.setitem(sys.modules, "sae_probes", MagicMock(DATASETS=[]))
    name = f"sae_bench.evals.{evaluation}.eval_output"
    module = pytest.importorskip(name, exc_type=ImportError)
    from pydantic import TypeAdapter

    found = TypeAdapter(getattr(module, model)).validate_json(written[evaluation].read_text())
    again = json.loads(found.to_json())
    ours = json.loads(written[evaluation].read_text())
    assert again["eval_type_id"] == ours["eval_type_id"] == module_id(module)
    for group, metrics in ours["eval_result_metrics"].items():
        assert metrics.items() <= again["eval_result_metrics"][group].items()
    assert again["eval_config"].get("model_name", "org/lm") == "org/lm"
    assert again["eval_result_unstructured"]["sae_atlas"][0]["floor"] == 0.2


def module_id(module):
    return next(value for key, value in vars(module).items() if key.startswith("EVAL_TYPE_ID"))


def test_the_groups_that_saebenchs_plots_read_are_there(written, monkeypatch):
    monkeypatch.setitem(sys.modules, "seaborn", MagicMock())  # draws, which nothing here does
    # As `get_eval_results` and `get_core_results` of `graphing_utils.py` take them.
    graphing = pytest.importorskip(
        "sae_bench.sae_bench_utils.graphing_utils", exc_type=ImportError
    )
    for evaluation, key in (
        ("core", "explained_variance"),
        ("absorption", "mean_absorption_fraction_score"),
        ("sparse_probing_sae_probes", "sae_top_5_test_accuracy"),
    ):
        (found,) = graphing.get_eval_results([str(written[evaluation])]).values()
        assert isinstance(found[key], float)
        assert found["d_sae"] == "0k"
    (core,) = graphing.get_core_results([str(written["core"])]).values()
    assert core["l0"] == 7


def test_what_is_missing_is_minus_one_in_the_file_and_none_when_it_is_read(written):
    raw = json.loads(written["core"].read_text())["eval_result_metrics"]
    assert raw["model_performance_preservation"]["ce_loss_score"] == -1
    found = read_saebench(written["core"])
    assert found["model_performance_preservation"]["ce_loss_score"] is None
    assert found["reconstruction_quality"]["explained_variance_legacy"] is None
    assert found["sparsity"]["l0"] == 7


def test_a_figure_that_is_no_number_is_missing(tmp_path):
    dictionary = subject()
    own = figures(dictionary, rows())
    own = replace(own, values={**own.values, "ce_loss_score": float("nan")})
    (path,) = write_saebench(tmp_path, "mine", dictionary, Measured(figures=own))
    found = read_saebench(path)
    assert found["model_performance_preservation"]["ce_loss_score"] is None


def test_the_figures_are_ours_and_the_error_is_a_mean_over_coordinates(written):
    dictionary, x = subject(), rows()
    quality = read_saebench(written["core"])["reconstruction_quality"]
    error = (dictionary(x).double() - x.double()).square()
    variance = (x.double() - x.double().mean(0)).square().sum()
    assert quality["mse"] == pytest.approx(float(error.mean()))
    assert quality["explained_variance"] == pytest.approx(float(1 - error.sum() / variance))


def test_dense_features_are_counted_from_the_histogram(tmp_path):
    dictionary, x = subject(), rows(2000)
    own = figures(dictionary, x)
    (path,) = write_saebench(tmp_path, "mine", dictionary, Measured(figures=own))
    fired = (dictionary.encode(x) > 0).double().mean(0)
    misc = read_saebench(path)["misc_metrics"]
    assert misc["freq_over_10_percent"] == pytest.approx(float((fired >= 0.1).double().mean()))
    assert misc["frac_alive"] == pytest.approx(float((fired > 0).double().mean()))


def test_absorption_is_the_mean_over_letters_and_each_letter_is_told(written):
    content = json.loads(written["absorption"].read_text())
    assert content["eval_result_metrics"]["mean"]["mean_absorption_fraction_score"] == 0.5
    assert content["eval_result_details"][0]["num_full_absorption"] == 5
    assert content["eval_config"]["random_seed"] == 7


def test_what_was_not_measurable_gets_no_file(tmp_path):
    dictionary = subject()
    meta = Finding(key="meta_explained_variance", why_not="it is too small")
    assert write_saebench(tmp_path, "mine", dictionary, Measured(findings=[meta])) == []


def test_a_transcoder_is_refused(tmp_path):
    dictionary = random_dictionary(d_out=16, model_name="org/lm", hook_name=HOOK)
    with pytest.raises(UserError, match="transcoder"):
        write_saebench(tmp_path, "mine", dictionary, Measured())


def test_the_same_figures_have_the_same_identity(tmp_path):
    dictionary = subject()
    ids = set()
    for folder in ("a", "b"):
        for path in write_saebench(
            tmp_path / folder, "mine", dictionary, measured(dictionary, rows())
        ):
            ids.add(json.loads(path.read_text())["eval_id"])
    assert len(ids) == 4
