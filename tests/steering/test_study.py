"""Steering beside its baselines: chosen on one half, reported on the other, and summed up."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from support.world import HOOK, random_dictionary

import sae
from sae.atlas import Atlas
from sae.atlas.choice import choose_dials
from sae.base.errors import UserError
from sae.core.bootstrap import Interval
from sae.edits.copies import Copies
from sae.models.hooks import find_site
from sae.models.load import ModelConfig, load_model
from sae.steering.arms import BASELINES, VECTORS, difference_of_means
from sae.steering.checks import Tried, check_dose, prompts_of_checks
from sae.steering.curve import curve_of
from sae.steering.material import contexts_of, halves, prompts_of, told
from sae.steering.reading import Alone, Arms, costs, token_shifts
from sae.steering.study import Studied, Study
from sae.steering.summary import summarise
from sae.steering.trial import FIGURES, Trial
from sae.steering.written import Desk, Writer
from sae.writing import Sampling, SharedNoise

PROMPTS = ["the river ran", "she kept seven", "the old mill", "before morning it"]


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(ModelConfig(name=str(tiny_model), device="cpu"))


@pytest.fixture(scope="module")
def copies(model):
    return Copies(model, find_site(model.module, HOOK))


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A run with an atlas of `strong` in which some features are scored; not to be changed."""
    run = tmp_path_factory.mktemp("study") / "run"
    shutil.copytree(tiny_run, run)
    dials = sae.DialConfig(n_features=10, n_nulls=4, n_texts=2, n_tokens=6)
    sae.analyze(run=str(run), dictionary="strong", dials=dials)
    return run


@pytest.fixture(scope="module")
def results(run):
    return sae.steer(
        run=str(run), dictionary="strong", n_features=2, prompts=PROMPTS, max_new_tokens=5
    )


# The results


def test_features_are_chosen_by_their_dial_score_and_every_arm_has_its_dose(run, results):
    rows = Atlas(run / "atlas/strong").features()
    assert [one["feature"] for one in results["features"]] == choose_dials(rows, 2)
    for one in results["features"]:
        assert one["criterion"].startswith("Of the features that are dials")
        doses = [m["strength"] for m in one["measurements"] if m["direction"] == "feature"]
        assert len(doses) == 9
        assert doses == sorted(doses)
        assert doses[:4] == [-dose for dose in doses[:4:-1]]
        operating = [m["direction"] for m in one["measurements"] if m["operating"]]
        assert {*operating} == {*VECTORS, "wrong_sign", "prompt", "reconstruction"}
        assert len(operating) == len({*operating})


def test_dose_zero_is_the_model_left_alone_to_the_bit(results):
    for one in results["features"]:
        zero = next(m for m in one["measurements"] if m["strength"] == 0)
        for figure in ("shift", "kl", "delta_ce", "gain"):
            assert zero[figure]["mean"] == 0
    unsteered = next(a for a in results["summary"]["arms"] if a["direction"] == "unsteered")
    assert unsteered["figures"]["kl"] == {"mean": 0, "low": 0, "high": 0}


def test_chosen_doses_cost_about_what_is_allowed(results):
    for one in results["features"]:
        for m in one["measurements"]:
            if m["direction"] in VECTORS and m["operating"]:
                assert 0 < m["kl"]["mean"] < 2 * one["max_cost"]


def test_no_figure_of_an_arm_is_without_its_baselines_and_its_nulls(results):
    arms = {arm["direction"]: arm["figures"] for arm in results["summary"]["arms"]}
    assert {*arms} == {"feature", "unsteered", *BASELINES}
    for figures in arms.values():
        assert {*figures} == {*FIGURES}
        assert all(figures[figure] is not None for figure in FIGURES)
    for one in results["features"]:
        assert {"direction_z", "direction_p", "feature_z", "feature_p"} <= {*one["null"]}
    assert [row["baseline"] for row in results["summary"]["comparison"]] == [*BASELINES]


def test_the_first_line_says_on_how_many_features_each_baseline_is_beaten(results, run, capsys):
    sae.steer(
        run=str(run), dictionary="strong", n_features=2, prompts=PROMPTS, max_new_tokens=5
    )
    said = capsys.readouterr().err
    headline = results["summary"]["headline"]
    assert f"steer: {headline}" in said
    assert headline.startswith("Of 2 features, at doses chosen to cost at most 0.1 nats")
    for row in results["summary"]["comparison"]:
        assert row["wins"] + row["losses"] + row["undecided"] == 2


def test_all_is_kept_and_texts_are_of_the_reporting_half(run, results):
    kept = json.loads((run / "steering/strong.json").read_text())
    assert kept["features"] == results["features"]
    for one in results["features"]:
        texts = {
            (s["prompt"], s["direction"], s["strength"]): s["text"] for s in one["samples"]
        }
        assert {prompt for prompt, _, _ in texts} == {*PROMPTS[1::2]}


# What cannot be measured


def test_without_a_dose_at_that_cost_the_reason_is_told_and_the_rest_is_kept(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    found = sae.steer(
        run=str(copy),
        dictionary="strong",
        n_features=1,
        prompts=PROMPTS,
        strengths=[-9.0, 0.0, 9.0],
        max_cost=1e-4,
        max_new_tokens=2,
    )
    (one,) = found["features"]
    assert one["operating_strength"] is None
    assert one["null"] is None
    assert one["checks"] == []
    assert one["told"].startswith("There is no operating point: no dose above 0 costs at most")
    assert found["summary"]["headline"].endswith("1 had no dose at that cost.")
    assert [m["strength"] for m in one["measurements"]][:3] == [-9.0, 0.0, 9.0]


def test_too_few_prompts_for_two_halves_are_refused(model):
    with pytest.raises(
        UserError, match="there are 3 prompts, too few for choosing doses on one half"
    ):
        prompts_of(model, PROMPTS[:3])
    with pytest.raises(UserError, match="one prompt occurs twice"):
        prompts_of(model, [*PROMPTS, PROMPTS[0]])
    assert halves([1, 2, 3, 4, 5]) == ([1, 3, 5], [2, 4])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"features": [5, 5]}, "features=5 occurs twice"),
        ({"max_cost": 0.0}, "max_cost=0.0"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        sae.SteerConfig(**settings)


def test_other_wordings_are_of_the_prompts_that_are_asked_for():
    assert len(sae.SteerConfig().rewordings) == 6
    assert sae.SteerConfig(prompts=PROMPTS).rewordings == []
    assert sae.SteerConfig(prompts=PROMPTS, reworded=["a mill"]).rewordings == ["a mill"]


def test_contexts_that_a_label_is_made_from_are_no_test_of_it(run, model):
    atlas = Atlas(run / "atlas/strong")
    some = [row["feature"] for row in atlas.features() if row["n_active"] > 20][:5]
    found = contexts_of(atlas, model, some, 0)
    texts = [*found.neutral.choosing, *found.neutral.reporting]
    assert len(texts) == 12
    for feature in some:
        top = {tuple(ids.tolist()) for ids in found.learned[feature]}
        assert top
        assert not top & {tuple(ids.tolist()) for ids in found.concept[feature]}


def test_a_killed_comparison_goes_on_where_it_stopped(run, results, tmp_path, monkeypatch):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "steering/strong.json").unlink()
    asked = {"run": str(copy), "dictionary": "strong", "n_features": 2, "prompts": PROMPTS}
    asked |= {"max_new_tokens": 5}
    of, studied = Study.of, []

    def killed_at_the_second(self, feature):
        if studied:
            raise KeyboardInterrupt
        studied.append(feature.number)
        return of(self, feature)

    monkeypatch.setattr(Study, "of", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        sae.steer(**asked)

    def second_alone(self, feature):
        assert feature.number not in studied
        return of(self, feature)

    monkeypatch.setattr(Study, "of", second_alone)
    assert sae.steer(**asked) == results
    assert not [*(copy / "steering").glob(".*.work")]


def test_too_little_neutral_text_is_refused(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    off = sae.DialConfig(n_features=0)
    sae.analyze(run=str(run), dictionary="strong", n_silent=0, dials=off)
    with pytest.raises(
        UserError, match=r"holds 0 sequences with a silent .* but 12 are needed"
    ):
        sae.steer(run=str(run), dictionary="strong", n_features=1)


def test_limits_on_words_stand_beside_or_alone(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    words = tmp_path / "words.txt"
    words.write_text("the river ran she kept old mill")
    found = sae.steer(
        run=str(copy),
        dictionary="strong",
        n_features=0,
        vocabulary=str(words),
        n_suppressed=4,
        target=0.2,
        prompts=PROMPTS,
        max_new_tokens=4,
    )
    assert found["features"] == []
    arms = {arm["arm"]: arm["figures"] for arm in found["vocabulary"]["arms"]}
    assert [*arms] == ["unlimited", "mask", "controller", "suppressed", "random"]
    assert arms["mask"]["words_outside"]["high"] == 0
    assert arms["unlimited"]["cost"]["mean"] == pytest.approx(0, abs=1e-6)
    assert arms["unlimited"]["perplexity"]["low"] > 1
    with pytest.raises(UserError, match="temperature=0 always takes the likeliest token"):
        sae.SteerConfig(vocabulary=str(words), temperature=0.0)
    with pytest.raises(UserError, match="n_features=0"):
        sae.SteerConfig(n_features=0)


# The parts


def test_vectors_of_zeros_and_sentences_are_measured_against_the_model_left_alone(
    copies, model
):
    texts = [torch.arange(10, 19), torch.arange(30, 36)]
    vectors = torch.stack([torch.zeros(32), torch.ones(32)])
    same = Alone(before=tuple(model.marks.begin))
    begun = [torch.cat([torch.tensor([*model.marks.begin]), text]) for text in texts]
    arms = Arms(copies, vectors, (same,))
    found = costs(arms, begun)
    assert found["kl"].shape == found["delta_ce"].shape == (3, 2)
    assert torch.equal(found["kl"][0], torch.zeros(2))
    assert (found["kl"][1] > 0).all()
    torch.testing.assert_close(found["kl"][2], torch.zeros(2), atol=1e-6, rtol=0)
    shifts = token_shifts(arms, begun, torch.tensor([4, 9]))
    assert torch.equal(shifts[0], torch.zeros(2))
    torch.testing.assert_close(shifts[2], torch.zeros(2), atol=1e-5, rtol=0)


def test_the_difference_of_means_points_to_what_some_texts_have_in_common(copies):
    positive = [torch.tensor([0, 50, 51, 50]), torch.tensor([0, 51, 50, 51])]
    negative = [torch.tensor([0, 90, 91, 92]), torch.tensor([0, 91, 90, 92])]
    found = difference_of_means(copies, positive, negative)
    assert torch.equal(found, -difference_of_means(copies, negative, positive))
    assert float(found.norm()) > 0


def test_noise_is_shared_within_a_group_and_differs_between_groups():
    noise = SharedNoise(Sampling(max_new_tokens=1, temperature=1.0, seed=0), n_groups=2)
    found = noise(torch.zeros(6, 1).long(), torch.zeros(6, 50))
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[3], found[5])
    assert not torch.equal(found[2], found[3])


def test_a_curve_is_told_by_order_half_effect_sides_and_where_text_breaks():
    strengths = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    effects = torch.tensor([-3.0, -1.0, 0.0, 1.0, 4.0])
    broken = torch.tensor([0.2, 0.9, 0.9, 0.8, 0.3])
    found = curve_of(strengths, effects, broken)
    assert found.monotonicity == pytest.approx(1)
    assert found.half_effect_strength == pytest.approx(4 / 3)
    assert found.asymmetry == pytest.approx(1 / 7)
    assert found.break_strength == 2
    flat = curve_of(strengths, torch.zeros(5), torch.ones(5))
    assert (flat.monotonicity, flat.half_effect_strength, flat.break_strength) == (None,) * 3


@pytest.mark.parametrize(
    ("shifts", "holds", "said"),
    [
        ([1.0, 1.1, 0.9, 1.0], True, "100% of the shift is left there."),
        ([0.3, 0.31, 0.29, 0.3], False, "30% of the shift is left there, less than half."),
        ([1.0, -1.0, 2.0, -2.0], False, "The shift cannot be told from none there."),
    ],
)
def test_a_dose_holds_where_half_of_its_shift_is_left(shifts, holds, said):
    tried = {"reworded": Tried((torch.arange(3),)), "chat": Tried(why_not="no template")}
    first, second = check_dose(tried, lambda _: torch.tensor(shifts), Interval(1.0, 0.9, 1.1))
    assert (first["holds"], first["told"]) == (holds, said)
    assert (second["holds"], second["shift"], second["told"]) == (None, None, "no template")


def test_a_model_without_a_chat_template_is_not_checked_in_a_chat(model):
    contrary = told({"top_logit_tokens": [" cats", "<0xE4>"]}, against=True)
    assert contrary == "The following text says nothing about cats.\n\n"
    found = prompts_of_checks(model, PROMPTS[:1], PROMPTS[2:], contrary)
    assert "has no chat template" in found["chat"].why_not
    assert (len(found["reworded"].prompts), len(found["contrary"].prompts)) == (1, 2)
    assert prompts_of_checks(model, [], PROMPTS, contrary)["reworded"].prompts == ()


def studied(ahead):
    """One feature whose round trip is ahead of every baseline by so much."""
    mine = {figure: torch.full((6,), 1.0) + torch.arange(6) / 1e4 for figure in FIGURES}
    other = {**mine, "round_trip": mine["round_trip"] - ahead}
    trials = [Trial("feature", 0.5, True, mine), Trial("feature", 0.0, False, other)]
    trials += [Trial(arm, None, True, other) for arm in BASELINES]
    return Studied(trials, {})


def test_wins_losses_and_what_cannot_be_told_apart_are_counted():
    noise = torch.tensor([1.0, -1.0, 2.0, -2.0, 1.5, -1.5])
    small = torch.arange(6) / 100
    several = [
        studied(0.4 + small),
        studied(0.2 + small),
        studied(-0.3 - small),
        studied(noise),
    ]
    found = summarise([*several, Studied([], {})], 0.1)
    for row in found["comparison_by"]["round_trip"]:
        assert (row["wins"], row["losses"], row["undecided"]) == (2, 1, 2)
    assert found["comparison"] == found["comparison_by"]["shift"]
    assert found["headline"].startswith(
        "Of 5 features, at doses chosen to cost at most 0.1 nats a token, steering wins : "
        "loses by how far the feature's own tokens move against plain prompt 0 : 0, "
    )
    assert found["read_back"].startswith("By how strongly the feature is found in the written")
    assert ": plain prompt 2 : 1, difference of means 2 : 1, " in found["read_back"]
    assert found["headline"].endswith("1 had no dose at that cost.")
    assert found["arms"][0]["n_features"] == 4
    assert math.isfinite(found["arms"][0]["figures"]["round_trip"]["low"])


def test_reconstruction_and_sentence_arms_write_from_the_same_noise(model, copies):
    desk = Desk(copies, random_dictionary(), find_site(model.module, HOOK))
    zero = torch.zeros(32)
    writers = [Writer(zero), Writer(zero, before=(0, 20, 21)), Writer(zero, reconstructs=True)]
    writers += [Writer(zero), Writer(torch.ones(32) * 5)]
    prompts = [torch.tensor([0, 40, 41]), torch.tensor([0, 42, 43, 44, 45])]
    how = Sampling(max_new_tokens=8, temperature=0.9, seed=0)
    ids = desk.write(writers, prompts, how)
    for one in ids:
        assert torch.equal(one[0], one[3])
        assert not torch.equal(one[0], one[4])
    # Together with others, padded, it writes what it writes alone.
    alone = desk.write(writers[:1], prompts, replace(how, temperature=0.0))
    together = desk.write(writers, prompts, replace(how, temperature=0.0))
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a[0], b[0])
    found = desk.read(3, prompts, ids)
    assert {name: tuple(rows.shape) for name, rows in found.items()} == dict.fromkeys(
        ("round_trip", "log_perplexity", "distinct_2", "longest_repeat"), (5, 2)
    )
