"""Figures of reconstructions are those of the dense definition, however they are computed."""

from dataclasses import replace

import pytest
import torch

from sae.core.fidelity import ReconstructionStatistics
from sae.dictionary import ConstantNorm, Dictionary, LayerNorm, TopK, add_reconstruction
from sae.dictionary import reconstruction as module

pytestmark = pytest.mark.usefixtures("two_threads")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dictionary(bias, activation=None, *, skip=False):
    found = Dictionary.from_weights(
        draw(24, 160, seed=1) / 24**0.5,
        0.1 * draw(160, seed=2) + bias,
        draw(160, 24, seed=3) / 12,
        draw(24, seed=4),
        activation,
    )
    return replace(found, W_skip=draw(24, 24, seed=5)) if skip else found


KINDS = {
    "few active": dictionary(-3.0),
    "many active": dictionary(0.0),
    "none active": dictionary(-99.0),
    "topk": dictionary(0.0, TopK(4)),
    "a skip connection": dictionary(-3.0, skip=True),
    "rows read by their length": dictionary(-3.0).normalised(ConstantNorm()),
    "rows centred and read by their length": dictionary(-3.0).normalised(LayerNorm()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_figures_equal_those_of_dense_activations(kind, monkeypatch):
    one, x = KINDS[kind], 1.5 * draw(300, 24)
    target = x + 0.1 * draw(300, 24, seed=6)
    acts = one.encode(x)
    expected = ReconstructionStatistics(24, 160)
    counts = (acts > 0).sum(0), (acts > 0).sum(1)
    expected.add(target, one.reconstruct(x, acts), *counts, float(acts.double().sum()))
    dense = float((acts > 0).float().mean()) > 1 / 16
    assert dense == (kind == "many active")
    for limit in (module._SPARSE_BELOW, 0.0, 2.0):
        monkeypatch.setattr(module, "_SPARSE_BELOW", limit)
        found = ReconstructionStatistics(24, 160)
        add_reconstruction(found, one.to("cpu"), x, target)
        assert torch.equal(found.fired, expected.fired)
        assert found.metrics() == pytest.approx(expected.metrics(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_active_latents_reconstruct_is_what_the_dictionary_gives(kind):
    one, x = KINDS[kind], 1.5 * draw(50, 24)
    found = one.reconstruct_sparse(x, one.encode_sparse(x))
    torch.testing.assert_close(found, one(x), rtol=1e-5, atol=1e-5)
    assert one.to("cpu").W_enc.t().is_contiguous()
