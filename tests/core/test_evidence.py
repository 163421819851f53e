"""Findings beside floors and controls, and what may be concluded."""

import json
from dataclasses import replace

import pytest

from sae.base import UserError, sealed_path, write_json
from sae.evidence import Evidence, held_out_findings, judged
from sae.figures import Figures
from sae.findings import Finding


def finding(value=0.7, half=0.02, key="explained_variance", **given):
    ends = {} if value is None else {"low": value - half, "high": value + half}
    return Finding(key=key, value=value, n=100, unit="rows", **ends | given)


def evidence(*findings, **given):
    about = {
        "id": "d",
        "recipe": "topk",
        "digest": "1",
        "dictionary_digest": "2",
        "hook_name": "h",
    }
    return Evidence(**about | given, findings=findings)


def verdict(own, control=None, l0=(32.0, 32.0)):
    sides = [
        evidence(finding(n0, key="l0"), one)
        for n0, one in zip(l0, (own, control), strict=True)
        if one
    ]
    controls = {"frozen_decoder": sides[1]} if control else {}
    return judged(sides[0], controls)[1]


def test_a_figure_is_better_than_a_control_where_their_intervals_do_not_overlap():
    found = verdict(finding(0.7), finding(0.5))
    assert (found.word, found.sentence) == (
        "better",
        "Better than the frozen decoder, by 0.200 or more.",
    )
    assert verdict(finding(0.7), finding(0.68)).word == "not told apart"
    assert verdict(finding(0.5), finding(0.7)).word == "worse"


def test_where_less_is_better_it_is_the_other_way_round():
    low, high = finding(0.2, key="absorption_fraction"), finding(0.6, key="absorption_fraction")
    assert verdict(low, high).word == "better"
    assert verdict(high, low).word == "worse"


def test_a_figure_that_is_not_past_its_floor_is_never_a_success():
    own = finding(0.3, floor=0.4, floor_of="random directions")
    found = verdict(own, finding(0.1))
    assert found.word == "at its floor"
    assert found.sentence == "No better than random directions, so it says nothing good."


def test_a_sparser_control_proves_nothing_where_fidelity_rises_with_l0():
    found = verdict(finding(0.7), finding(0.5), l0=(40.0, 20.0))
    assert found.word == "not told apart"
    assert "lower L0 has a handicap" in found.sentence
    assert verdict(finding(0.5), finding(0.7), l0=(40.0, 20.0)).word == "worse"
    assert verdict(finding(0.7), finding(0.5), l0=(20.0, 40.0)).word == "better"


def test_what_is_not_measurable_says_why():
    missing = Finding(key="ce_loss_score", why_not="zeros change nothing")
    found = verdict(missing, finding(0.5, key="ce_loss_score"))
    assert (found.word, found.sentence) == ("not measurable", "zeros change nothing.")
    one_sided = verdict(finding(0.5, key="ce_loss_score", floor=0.0, floor_of="zeros"), missing)
    assert one_sided.word == "better"
    assert "no control was measured" in one_sided.sentence


def test_without_floor_and_control_there_is_nothing_to_conclude():
    assert verdict(finding(0.5)).word == "context"


def test_lengths_are_compared_at_their_own_fidelity_alone():
    own = finding(90.0, 1.0, key="description_length", floor=200.0, floor_of="a dense code")
    found = verdict(own, finding(10.0, 1.0, key="description_length"))
    assert found.word == "better"
    assert "controls keep another share" in found.sentence


def test_what_was_written_is_read_back(tmp_path):
    missing = Finding(key="stability", why_not="one seed alone")
    one = evidence(
        finding(), missing, control="soft_frozen", seconds={"core": 1.5}, data="text"
    )
    with sealed_path(tmp_path / "d.json") as temporary:
        write_json(temporary, one.to_json())
    assert Evidence.read(tmp_path / "d.json") == one


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(json.dumps({**evidence().to_json(), "findings": [3]}))
    with pytest.raises(UserError, match="findings that are not objects; delete it and run"):
        Evidence.read(path)


def test_held_out_figures_come_with_intervals_and_what_keeps_nothing():
    figures = Figures(
        id="d",
        architecture="topk",
        hook_name="h",
        n_rows=500,
        n_density_rows=900,
        n_behaviour_tokens=64,
        values={"l0": 3.0, "explained_variance": 0.5, "dead_fraction": 0.1},
        intervals={"explained_variance": [0.4, 0.6]},
        not_measurable={"ce_loss_score": "zeros change nothing"},
    )
    found = {one.key: one for one in held_out_findings(figures)}
    assert list(found) == ["l0", "explained_variance", "ce_loss_score", "dead_fraction"]
    assert (found["explained_variance"].low, found["explained_variance"].high) == (0.4, 0.6)
    assert found["explained_variance"].floor == 0
    assert found["ce_loss_score"].why_not == "zeros change nothing"
    assert found["dead_fraction"].n == 900
    changed = replace(figures, not_measurable={})
    assert "ce_loss_score" not in {one.key for one in held_out_findings(changed)}
