"""A tuned lens of a small cache: what it is fitted to, what it gains, what is refused."""

import numpy as np
import pytest
import torch
from support.world import harvest_settings

import sae
from sae.base import UserError
from sae.lenses import cached_streams, fit_tuned
from sae.lenses.fit import _sums
from sae.lenses.ridge import ridge
from sae.lenses.streams import lens_logits
from sae.models import recorded_model

ALL = ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(3))]
HARVEST = "sae harvest run=r"


@pytest.fixture(scope="module")
def cache(tmp_path_factory, tiny_model, tiny_text):
    run = tmp_path_factory.mktemp("lens")
    return sae.harvest(**harvest_settings(run, tiny_model, tiny_text) | {"hook_names": ALL})


@pytest.fixture(scope="module")
def model(cache):
    return recorded_model(cache.model, "cpu")


@pytest.fixture(scope="module")
def streams(model, cache):
    return cached_streams(model.module, cache, HARVEST)


@pytest.fixture(scope="module")
def tuned(streams, model):
    return fit_tuned(streams, model, 512)


def test_every_layer_before_the_last_gets_a_map(streams, tuned):
    assert streams.last == ALL[-1]
    assert streams.layers == {-1: ALL[0], 0: ALL[1], 1: ALL[2]}
    assert [*tuned.maps] == [-1, 0, 1]
    assert all(found.W.dtype == torch.float32 for found in tuned.maps.values())


def test_maps_are_fitted_to_training_rows_and_judged_on_others(cache, streams, tuned):
    training, held_out = streams.keep(held_out=False), streams.keep(held_out=True)
    assert not (training & held_out).any()
    assert not training[cache.held_out].any()
    assert tuned.judged["n_training_rows"] == training.sum()
    fitted, judged = _sums(streams, ALL[1], training)
    assert fitted.n_rows + judged.n_rows == training.sum()
    assert 0.05 < judged.n_rows / training.sum() < 0.15
    # The same, read plainly.
    keep = torch.from_numpy(training)
    x, y = (cache.read(name, slice(0, len(keep)))[keep].double() for name in ALL[1::2])
    strength = tuned.judged["layers"][1]["strength"]
    centred = x - x.mean(0)
    gram = centred.t() @ centred
    gram += strength * gram.diagonal().mean() * torch.eye(32).double()
    expected = torch.linalg.solve(gram, centred.t() @ (y - y.mean(0)))
    torch.testing.assert_close(ridge(fitted + judged, strength).W, expected)
    torch.testing.assert_close(tuned.maps[0].W, expected.float())


def test_on_held_out_text_a_tuned_lens_is_nearer_to_the_model_at_each_layer(tuned):
    floor = tuned.judged["floor"]["kl"]["mean"]
    lines = tuned.judged["layers"]
    for line in lines:
        logit, fitted = line["logit"]["kl"], line["tuned"]["kl"]
        assert fitted["mean"] < logit["mean"]
        assert line["gain"]["low"] > 0
        assert line["gain"]["mean"] == pytest.approx(logit["mean"] - fitted["mean"])
        assert fitted["low"] < fitted["mean"] < fitted["high"]
        assert 0 <= line["tuned"]["agreement"] <= 1
    # Nearer to the end more is known, in the end more than the mean of all streams says.
    assert lines[-1]["tuned"]["kl"]["mean"] < lines[0]["tuned"]["kl"]["mean"]
    assert lines[-1]["tuned"]["kl"]["mean"] < floor


def test_the_figures_are_those_of_their_definition(cache, streams, model, tuned):
    keep = streams.keep(held_out=True)
    there = np.flatnonzero(keep.any(1))
    chosen = there[np.linspace(0, len(there) - 1, 16).astype(int)]
    means, floors = [], []
    training = torch.from_numpy(streams.keep(held_out=False))
    mean = cache.read(ALL[-1], slice(0, len(training)))[training].float().mean(0)
    for i in chosen.tolist():
        ids = torch.from_numpy(cache.tokens[i : i + 1]).long()
        rows = torch.from_numpy(keep[i])

        def log_probs(hidden, ids=ids):
            return lens_logits(model.module, hidden.float(), ids)[0].double().log_softmax(-1)

        own = log_probs(cache.read(ALL[-1], slice(i, i + 1)))[rows]
        lens = log_probs(cache.read(ALL[2], slice(i, i + 1)))[rows]
        constant = log_probs(mean.expand(1, 32, 32))[rows]
        means.append((own.exp() * (own - lens)).sum(1).mean())
        floors.append((own.exp() * (own - constant)).sum(1).mean())
    assert tuned.judged["n_held_out_rows"] == keep[chosen].sum()
    found = tuned.judged["layers"][2]["logit"]["kl"]["mean"]
    assert found == pytest.approx(float(torch.stack(means).mean()), rel=1e-3)
    floor = tuned.judged["floor"]["kl"]["mean"]
    assert floor == pytest.approx(float(torch.stack(floors).mean()), rel=1e-3)


def test_it_is_found_again_by_what_decides_it(streams):
    assert streams.digest(512) == streams.digest(512)
    assert streams.digest(512) != streams.digest(256)


def test_a_cache_without_the_last_block_is_refused_with_the_command_that_makes_one(
    tiny_run, model
):
    cache = sae.open_cache(tiny_run / "cache.zarr")
    with pytest.raises(UserError) as refused:
        cached_streams(model.module, cache, HARVEST)
    assert str(refused.value).endswith(
        "make a cache with it: sae harvest run=r "
        "hook_names=[blocks.1.hook_resid_post,blocks.2.hook_resid_post]"
    )
    assert "\n" not in str(refused.value)


def test_a_cache_of_the_last_block_alone_is_refused(tmp_path, model, tiny_model, tiny_text):
    settings = harvest_settings(tmp_path, tiny_model, tiny_text) | {"hook_names": ALL[-1:]}
    cache = sae.harvest(**settings | {"n_tokens": 1024})
    with pytest.raises(UserError, match=r"holds blocks\.2\.hook_resid_post alone"):
        cached_streams(model.module, cache, HARVEST)


def test_a_cache_of_few_sequences_is_refused(tmp_path, model, tiny_model, tiny_text):
    settings = harvest_settings(tmp_path, tiny_model, tiny_text) | {"hook_names": ALL}
    cache = sae.harvest(**settings | {"n_tokens": 256})
    streams = cached_streams(model.module, cache, HARVEST)
    with pytest.raises(
        UserError, match=r"training sequences, but a tuned lens needs at least 10"
    ):
        fit_tuned(streams, model, 512)
