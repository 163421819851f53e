"""Dials: what features do to the output, beside random directions and random features."""

import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.world import HOOK, random_dictionary

import sae
from sae.analysis.dials import (
    Bench,
    Candidates,
    DialConfig,
    Measured,
    bench_of,
    neutral_texts,
)
from sae.analysis.verdicts import LEAST_SHIFT, _without_itself, verdicts
from sae.atlas.schema import DIALS, FEATURES
from sae.base.errors import UserError
from sae.core.effects import kl_divergence, log_mass
from sae.edits import ALL_BUT_FIRST, Add, Edit, edited
from sae.edits.copies import Copies, strengths_at_cost
from sae.models.hooks import find_site
from sae.models.load import ModelConfig, load_model

CONFIG = DialConfig(n_features=12, n_nulls=6, n_texts=2, n_tokens=7)


@pytest.fixture(scope="module")
def analyzed(tiny_run, tmp_path_factory):
    """The atlas of `strong`, twelve of its features scored."""
    run = tmp_path_factory.mktemp("dials") / "run"
    shutil.copytree(tiny_run, run)
    return sae.analyze(run=str(run), dictionary="strong", n_contexts=4, dials=CONFIG)


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(ModelConfig(name=str(tiny_model), device="cpu"))


def text_of(n_sequences=20, context_size=16, documents=None):
    tokens = np.arange(n_sequences * context_size, dtype=np.int32) % 390 + 5
    owners = np.repeat(np.arange(n_sequences, dtype=np.int32), context_size)
    owners = owners if documents is None else documents.astype(np.int32)
    return SimpleNamespace(
        tokens=tokens, documents=owners, n_sequences=n_sequences, context_size=context_size
    )


# In an atlas


def test_features_are_scored_beside_their_nulls_and_the_others_have_no_numbers(analyzed):
    rows, record = analyzed.features(), analyzed.record
    scored = [row for row in rows if row["dial_verdict"]]
    assert len(scored) == record.n_scored == 12
    names = [one.name for one in FEATURES.columns.values() if one.group == DIALS]
    for row in rows:
        if row["dial_verdict"]:
            assert 0 <= row["input_score"] <= 1
            assert 0 < row["dial_score_p"] <= 1
            assert math.isfinite(row["dial_kl"])
        else:
            assert all(math.isnan(row[name]) for name in names if name != "dial_verdict")
    verdicts_found = [row["dial_verdict"] for row in scored]
    assert verdicts_found.count("dial") == record.n_dials
    assert verdicts_found.count("weak") == record.n_weak_dials
    for row in scored:
        beyond = row["dial_score"] > row["dial_score_null"]
        expected = "weak" if row["dial_score"] < LEAST_SHIFT else "dial"
        assert row["dial_verdict"] == (expected if beyond else "none")


def test_every_figure_at_the_stated_dose_has_both_nulls_beside_it():
    names = {one.name for one in FEATURES.columns.values() if one.group == DIALS}
    for figure in ("output_score", "token_shift", "confidence_change", "delta_ce", "kl"):
        for kind in ("direction", "feature"):
            assert {f"{figure}_{kind}_{what}" for what in ("mean", "z", "p")} <= names


def test_the_cost_and_the_effect_are_those_of_the_whole_model_under_that_edit(analyzed, model):
    """Everything again by a plain forward pass for each text, without copies or replays."""
    dictionary = sae.load(str(analyzed.folder.parents[1] / "dictionaries/strong"))
    cache = sae.open_cache(str(analyzed.folder.parents[1] / "cache.zarr"))
    tokens = cache.read_rows("tokens", slice(0, cache.n_sequences))
    owners = np.where(tokens == 0, -1, cache.read_rows("documents", slice(0, len(tokens))))
    text = SimpleNamespace(
        tokens=tokens.ravel(),
        documents=owners.ravel(),
        n_sequences=len(tokens),
        context_size=tokens.shape[1],
    )
    texts = neutral_texts(text, CONFIG, 0)[1 + CONFIG.n_texts :]
    row = next(row for row in analyzed.features() if row["dial_verdict"])
    vector = row["dial_strength"] * row["max_activation"] * dictionary.W_dec[row["feature"]]
    edit = Edit(find_site(model.module, HOOK), Add(vector), ALL_BUT_FIRST)
    kl, shift = [], []
    for ids in texts[:, :-1]:
        with torch.inference_mode():
            plain = model.module(ids[None]).logits[0, 3:].log_softmax(-1)
            with edited(model.module, [edit]):
                after = model.module(ids[None]).logits[0, 3:].log_softmax(-1)
        own = torch.tensor(row["top_logit_ids"])
        kl.append(kl_divergence(plain, after).mean())
        shift.append((log_mass(after, own) - log_mass(plain, own)).mean())
    assert row["dial_kl"] == pytest.approx(float(torch.stack(kl).mean()), rel=1e-3)
    assert row["dial_score"] == pytest.approx(float(torch.stack(shift).mean()), abs=1e-3)


def test_all_features_that_fire_are_scored_or_none_as_asked(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    asked = {"run": str(run), "dictionary": "strong", "n_contexts": 2}
    atlas = sae.analyze(**asked, dials=replace(CONFIG, n_features=0))
    assert "dial_score" not in atlas.features()[0]
    assert atlas.record.n_scored == 0
    atlas = sae.analyze(**asked, dials=replace(CONFIG, n_features=None, n_texts=1))
    assert atlas.record.n_scored == sum(row["n_active"] > 0 for row in atlas.features())


def test_an_atlas_is_made_though_nothing_can_be_scored_and_says_why(tiny_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    atlas = sae.analyze(
        run=str(run), dictionary="strong", n_contexts=2, dials=DialConfig(n_tokens=100)
    )
    assert len(atlas.features()) == 64
    why = (
        "dials.n_tokens=100 and the token that follows them do not fit into a sequence of 32 "
        "tokens; give fewer"
    )
    assert atlas.record.without_dials == why
    assert f"not scored as dials, because {why}" in capsys.readouterr().err


def test_the_features_whose_tokens_rise_most_are_scored(tiny_run, tmp_path):
    """Those of the few are what all of them say, on a text that nothing is measured on."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    asked = {"run": str(run), "dictionary": "strong", "n_contexts": 2}
    few = sae.analyze(**asked, dials=replace(CONFIG, n_features=6)).features()
    scored = {row["feature"]: row["dial_score"] for row in few if row["dial_verdict"]}
    rows = sae.analyze(**asked, dials=replace(CONFIG, n_features=None)).features()
    every = {row["feature"]: row["dial_score"] for row in rows if row["dial_verdict"]}
    assert len(scored) == 6
    others = [value for feature, value in every.items() if feature not in scored]
    assert np.mean([every[feature] for feature in scored]) > np.mean(others)
    # A feature's own figures do not depend on which others are scored.
    assert scored == pytest.approx({feature: every[feature] for feature in scored}, abs=1e-4)


# Texts and doses


def test_neutral_texts_are_beginnings_of_different_documents():
    text = text_of()
    found = neutral_texts(text, CONFIG, 3)
    assert found.shape == (5, 8)
    starts = found[:, 0].tolist()
    assert len({*starts}) == 5
    assert {*starts} <= {*(text.tokens.reshape(20, 16)[:, 0].tolist())}
    assert torch.equal(found, neutral_texts(text, CONFIG, 3))
    assert not torch.equal(found, neutral_texts(text, CONFIG, 4))


def test_too_few_documents_are_refused_in_a_sentence():
    with pytest.raises(UserError, match=r"has 3 documents that .* dials.n_texts=2 needs 5"):
        neutral_texts(text_of(3), CONFIG, 0)


@pytest.mark.parametrize("power", [1.3, 2.0])
def test_doses_of_equal_cost_are_found_in_two_tries(power):
    scale = torch.tensor([0.3, 2.0, 40.0]).double()
    tries = []

    def cost(strengths):
        tries.append(strengths)
        return scale * strengths**power

    found = strengths_at_cost(
        cost, 0.05, torch.ones(3).double(), torch.full((3,), 1e3).double()
    )
    torch.testing.assert_close(scale * found**power, torch.full((3,), 0.05).double())
    assert len(tries) == 2
    most = torch.full((3,), 1e-3).double()
    assert torch.equal(strengths_at_cost(cost, 0.05, torch.ones(3).double(), most), most)


# Planted directions


def planted(model, vectors, own, at=2):
    """A bench of vectors at the last block's output, which score the tokens `own`."""
    copies = Copies(model, find_site(model.module, f"blocks.{at}.hook_resid_post"))
    return Bench(copies, vectors, torch.ones(len(vectors)).double(), own)


def test_a_planted_writer_of_a_token_scores_one_and_what_the_head_does_not_read_about_zero(
    tiny_model,
):
    model = load_model(ModelConfig(name=str(tiny_model), device="cpu"))
    head = model.module.get_output_embeddings().weight
    with torch.no_grad():
        head[:, :4] = 0
        # What the last norm gives is short: larger weights make a sure choice of it.
        head.mul_(30)
    token = 7
    unread = torch.zeros(32)
    unread[:4] = torch.randn(4, generator=torch.Generator().manual_seed(0))
    vectors = torch.stack([1e4 * head[token] / head[token].norm(), 0.01 * unread])
    text = torch.arange(20, 31)
    found = planted(model, vectors, torch.tensor([[token], [token]])).measure(
        text, torch.ones(2)
    )
    assert found["score"][0] + found["plain_score"][0] == pytest.approx(1, abs=1e-3)
    assert abs(found["score"][1]) < 0.02
    assert found["kl"][0] > 1


def test_small_opposite_doses_do_opposite_things_and_none_does_nothing(model):
    vectors = torch.randn(1, 32, generator=torch.Generator().manual_seed(5)).repeat(3, 1)
    found = planted(model, vectors, torch.tensor([[3, 9]] * 3), at=1).measure(
        torch.arange(20, 31), torch.tensor([0.01, -0.01, 0.0])
    )
    up, down, none = found["mass"]
    assert up * down < 0
    assert up == pytest.approx(-down, rel=0.1)
    assert abs(none) < 1e-5
    assert found["kl"][2] < 1e-6 < found["kl"][0]


def test_random_directions_on_average_do_nothing(model):
    """Within two standard errors of none, at a small dose."""
    n = 256
    vectors = torch.randn(n, 32, generator=torch.Generator().manual_seed(1))
    bench = planted(model, vectors, torch.tensor([[3, 9, 40]]), at=1)
    found = bench.measure(torch.arange(20, 31), torch.full((n,), 0.02))
    shifts = np.concatenate([found["mass"], found["null_mass"][:, 0]])
    assert abs(shifts.mean()) < 2 * shifts.std() / math.sqrt(n)
    assert shifts.std() > 1e-4


# Verdicts


def test_a_feature_is_a_dial_if_no_null_does_as_much_and_its_tokens_are_twice_as_likely():
    n_nulls, chosen = 2, np.array([0, 3, 5])
    drawn = 3  # one more random feature than is needed
    some = Candidates(
        random_dictionary(),
        chosen,
        np.ones(48, np.float32),
        np.zeros((48, 4), np.int64),
        np.full((48, 2), -1),
    )
    own = np.array([0.9, 0.3, 0.9])
    chance = np.full((n_nulls + drawn, 3), 0.1)
    chance[0, 2] = 1.0

    def arrays():
        everyone = np.ones(3 + n_nulls + drawn)
        return {
            "score": own / 10,
            "mass": own,
            "null_score": chance / 10,
            "null_mass": chance,
            "plain_score": np.zeros(3),
            "confidence": everyone,
            "ce": everyone,
            "kl": 0.05 * everyone,
        }

    strengths = np.ones(3 + n_nulls + drawn)
    config = DialConfig(n_nulls=n_nulls)
    found = verdicts(config, some, Measured(arrays(), arrays(), strengths, strengths), 0)
    told = found.columns["dial_verdict"]
    assert [told[i] for i in chosen] == ["dial", "weak", "none"]
    assert told[1] == ""
    assert (found.n_scored, found.n_dials, found.n_weak) == (3, 1, 1)
    assert found.median_cost == pytest.approx(0.05)
    # Of four nulls: a fifth is the least, two fifths where one does as much.
    assert found.columns["dial_score_p"][chosen] == pytest.approx([0.2, 0.2, 0.4])


def test_no_feature_is_its_own_null(analyzed, model):
    dictionary = sae.load(str(analyzed.folder.parents[1] / "dictionaries/strong"))
    rows = analyzed.features()
    highest = np.array([row["max_activation"] for row in rows], np.float32)
    promoted = np.array([row["top_logit_ids"] for row in rows])
    some = Candidates(dictionary, np.arange(64), highest, promoted, np.full((64, 2), -1))
    drawn = some.random_features(CONFIG.n_nulls, 0)
    bench = bench_of(CONFIG, model, some, torch.arange(20, 60).view(4, 10), 0)
    assert len(bench.units) == 64 + 6 + 7
    # Of a feature that was drawn, six other features are left, and of any other the first six.
    table = np.tile(np.arange(7.0)[:, None], 64)
    left = _without_itself(torch.from_numpy(table), drawn, some.chosen)
    assert left.shape == (6, 64)
    for place, feature in enumerate(drawn):
        assert place not in left[:, feature].tolist()
    free = next(i for i in range(64) if i not in drawn)
    assert left[:, free].tolist() == [0, 1, 2, 3, 4, 5]
