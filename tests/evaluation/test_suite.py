"""The standard suite on a tiny run: evidence, what is reused, what cannot be measured."""

import json
import shutil

import pytest

import sae
from sae.base import UserError
from sae.evaluation import suite
from sae.evaluation.evaluate import EvalConfig
from sae.evaluation.suite import Measurement, gather
from sae.evidence import Evidence, judged
from sae.findings import Finding
from sae.run import Run

SMALL = {"training_tokens": 6_400, "train_batch_size_tokens": 128}


@pytest.fixture(scope="module")
def measured(tmp_path_factory, tiny_run):
    """A run with two seeds, one of them with a control, after the standard suite."""
    run = tmp_path_factory.mktemp("suite")
    shutil.copytree(tiny_run / "cache.zarr", run / "cache.zarr")
    topk = sae.TopKConfig(d_sae=48, k=6)
    settings = {"run": str(run), "sae": topk, **SMALL}
    settings["sweep"] = sae.SweepConfig(evaluate=False)
    sae.train(**settings, name="one", control=["frozen_decoder"])
    sae.train(**settings, name="two", seed=7)
    sae.eval(run=str(run), suite="standard", n_behaviour_tokens=256)
    return Run.at(run)


def test_each_figure_is_there_with_interval_and_number_or_says_why_not(measured):
    found = Evidence.read(measured.evidence("one"))
    assert {one.key for one in found.findings} >= {
        "l0",
        "explained_variance",
        "ce_loss_score",
        "description_length",
        "stability",
        "meta_explained_variance",
        "absorption_probe_f1",
    }
    for one in found.findings:
        if one.value is None:
            assert one.why_not
            continue
        assert one.n > 0, one.key
        assert one.unit, one.key
        assert one.low is None or one.low <= one.value <= one.high, one.key
    assert found.find("stability").of == "two"
    assert set(found.seconds) >= {"description length", "stability"}


def test_a_trained_dictionary_is_better_than_its_control_and_the_page_says_so(measured):
    own = Evidence.read(measured.evidence("one"))
    control = Evidence.read(measured.evidence("one-frozen-decoder"))
    assert control.control == "frozen_decoder"
    words = {v.finding.key: v.word for v in judged(own, {"frozen_decoder": control})}
    assert words["explained_variance"] == "better"
    assert json.loads(measured.report_data.read_text())["evidence"] == "evidence.html"
    page = measured.evidence_page.read_text()
    told = json.loads(page.split('id="data-report">')[1].split("</script>")[0])
    assert [one["id"] for one in told["dictionaries"]] == ["one", "two"]
    assert told["dictionaries"][0]["missing"] == [
        "soft_frozen",
        "frozen_encoder",
        "random_model",
    ]
    assert "better than its floors and the frozen decoder" in told["dictionaries"][0]["summary"]
    assert "no control was trained" in told["dictionaries"][1]["summary"]


def test_evidence_of_the_same_dictionary_is_reused(measured, monkeypatch):
    def measured_again(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(suite, "_measured", measured_again)
    before = measured.evidence("one").read_bytes()
    sae.eval(run=str(measured.folder), suite="standard", n_behaviour_tokens=256)
    assert measured.evidence("one").read_bytes() == before


def test_what_fails_is_said_and_takes_nothing_from_the_rest(measured, capsys):
    def broken(subject):
        raise UserError("the data sets cannot be had without a network")

    def works(subject):
        return [Finding(key="sparse_probing", value=0.9, n=4, unit="data sets")]

    config = EvalConfig(run=str(measured.folder), dictionary="one", n_behaviour_tokens=256)
    found, control = gather(
        config,
        [
            Measurement("broken", ("stability",), broken),
            Measurement("works", ("sparse_probing",), works),
        ],
    )
    assert found.find("stability").why_not == "the data sets cannot be had without a network"
    assert found.find("sparse_probing").value == 0.9
    assert control.id == "one-frozen-decoder"
    assert "broken of one is not measured" in capsys.readouterr().err


def test_a_suite_that_is_not_known_is_refused():
    with pytest.raises(UserError, match="suite=full is unknown; choose held_out or standard"):
        EvalConfig(suite="full")
