"""Estimates from gradients: exact where all is linear, and integrals that are near."""

import pytest
import torch
from support.families import MODELS, random_model
from support.patching_pairs import CAUSAL, linear_model, pair, places_of, random_pairs, states

from sae.patching.attribution import gradients
from sae.patching.cells import Cell
from sae.patching.config import PatchConfig
from sae.patching.exact import Exact, Target

STEPS = PatchConfig(ig_steps=3)
ONE_TOKEN = [pair([9], [77])]


def total(places, base, source, method, steps=5):
    """The estimated change of the metric when the embeddings are put in."""
    slopes = gradients(
        places, base, source, [places.first], method, PatchConfig(ig_steps=steps)
    )
    change = source.streams[0] - base.streams[0]
    return (change * slopes[places.first.hook_name]).sum((1, 2))


@pytest.mark.parametrize("method", ["plain", "relp", "ig"])
def test_on_a_linear_model_every_estimate_is_exact(method):
    places = places_of(linear_model())
    clean, corrupt = states(places, ONE_TOKEN)
    for kind in ("residual", "attention", "mlp"):
        for layer in range(3):
            site = places.site(kind, layer)
            slopes = gradients(places, corrupt, clean, [site], method, PatchConfig())
            base, source = corrupt.at[site.hook_name], clean.at[site.hook_name]
            share = Cell(kind, layer, position=0).share(
                (source - base) * slopes[site.hook_name], 4
            )
            exact = Exact(places, 8).effects(
                corrupt, clean, Target(site, base, source), [Cell(kind, layer, position=0)]
            )
            estimate = share / (clean.metric - corrupt.metric)
            torch.testing.assert_close(estimate.double(), exact[:, 0], rtol=1e-3, atol=1e-4)


def test_integrated_gradients_of_a_tanh_net_are_within_one_per_cent_and_plain_ones_far_off():
    module = linear_model("tanh")
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(0.8)
        # Far enough into the curve for one end of it to tell little of the way.
        module.transformer.wte.weight.mul_(40.0)
    places = places_of(module)
    clean, corrupt = states(places, ONE_TOKEN)
    change = clean.metric - corrupt.metric
    near = total(places, corrupt, clean, "ig", 10)
    torch.testing.assert_close(near, change, rtol=0.01, atol=0)
    plain = total(places, corrupt, clean, "plain")
    assert abs(float(plain / change) - 1) > 0.05


@pytest.mark.parametrize("family", CAUSAL)
def test_batched_prompts_give_what_each_gives_alone(family):
    places, pairs = places_of(random_model(*MODELS[family])), random_pairs(3)
    clean, corrupt = states(places, pairs)
    site = places.site("mlp", 1)
    for method in ("plain", "relp", "ig"):
        together = gradients(places, corrupt, clean, [site], method, STEPS)[site.hook_name]
        parts = PatchConfig(ig_steps=3, batch_size=2)
        in_parts = gradients(places, corrupt, clean, [site], method, parts)[site.hook_name]
        torch.testing.assert_close(in_parts, together, rtol=1e-2, atol=1e-3)
        for i in range(3):
            one = torch.tensor([i])
            alone = gradients(places, corrupt.of(one), clean.of(one), [site], method, STEPS)
            scale = float(together[i].abs().max())
            torch.testing.assert_close(
                alone[site.hook_name][0], together[i], rtol=1e-2, atol=1e-3 * scale
            )


def test_estimates_leave_no_trace_and_ask_no_gradient_of_weights():
    places = places_of(random_model(*MODELS["llama"]))
    clean, corrupt = states(places, random_pairs())
    module = places.model.module
    with torch.no_grad():
        before = module(clean.tokens).logits
        gradients(places, corrupt, clean, [places.site("mlp", 1)], "relp", STEPS)
        assert torch.equal(module(clean.tokens).logits, before)
    assert all(weight.grad is None for weight in module.parameters())


def test_the_shares_of_cells_make_up_the_whole():
    shares = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))
    whole = Cell("attention", 1).share(shares, 4)
    by_position = sum(Cell("attention", 1, position=i).share(shares, 4) for i in range(7))
    by_head = sum(Cell("head", 1, head=i).share(shares, 4) for i in range(4))
    torch.testing.assert_close(by_position, whole)
    torch.testing.assert_close(by_head, whole)
