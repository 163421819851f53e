"""A figure with its interval and its floor."""

import pytest

from sae.base import JsonObject, UserError
from sae.findings import Finding, shown


def finding(**given):
    return Finding(
        **({"key": "explained_variance", "value": 0.6, "n": 10, "unit": "rows"} | given)
    )


def test_a_figure_beats_its_floor_only_with_its_whole_interval():
    assert finding(low=0.5, high=0.7, floor=0.4).beats_floor is True
    assert finding(low=0.3, high=0.7, floor=0.4).beats_floor is False
    assert finding(floor=0.4).beats_floor is True
    assert finding().beats_floor is None


def test_where_less_is_better_the_upper_end_has_to_be_below_the_floor():
    assert finding(key="mse", low=0.3, high=0.5, floor=0.4).beats_floor is False
    assert finding(key="mse", low=0.2, high=0.3, floor=0.4).beats_floor is True
    assert finding(key="l2_ratio", floor=0.1).beats_floor is None


def test_what_was_written_is_read_back():
    for one in (
        finding(low=0.5, high=0.7, floor=0.4, floor_of="noise", of="k=1"),
        finding(value=None, why_not="there is no second seed"),
    ):
        assert Finding.from_json(JsonObject("f", "", one.to_json(), "make it anew")) == one


def test_there_is_a_value_or_a_reason_for_none():
    with pytest.raises(ValueError, match="either a value or a reason"):
        finding(value=None)
    with pytest.raises(ValueError, match="either a value or a reason"):
        finding(why_not="because")
    with pytest.raises(ValueError, match="no number"):
        finding(value=float("nan"))
    with pytest.raises(ValueError, match=r"describe it in sae\.metrics"):
        finding(key="cleverness")


def test_a_figure_of_a_later_version_is_refused_in_a_sentence():
    found = JsonObject("f.json", "", {"key": "cleverness", "value": 1.0}, "make it anew")
    with pytest.raises(UserError, match="'cleverness' is none that this version knows"):
        Finding.from_json(found)


def test_one_finding_is_found_by_its_key_and_part():
    one, other = finding(of="k=1"), finding(of="k=5", value=0.7)
    assert shown([one, other], "explained_variance", "k=5") is other
    assert shown([one, other], "explained_variance", "k=9") is None
    assert shown([one], "explained_variance") is one
    assert shown([one, other], "mse") is None
