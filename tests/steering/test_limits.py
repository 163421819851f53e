"""Limits on the next token, and what they cost."""

import math

import pytest
import torch

from sae.models.load import ModelConfig, load_model
from sae.steering.limits import (
    Controller,
    Limiter,
    masses,
    penalised_cost,
    penalised_mass,
)
from sae.steering.suppression import divergence
from sae.steering.words import ROOT, Words, token_texts
from sae.writing import Sampling, prompt_ids

TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(ModelConfig(name=str(tiny_model), device="cpu"))


@pytest.fixture(scope="module")
def words(model):
    return Words(["the", "mill", "cats", "rain", "one"], token_texts(model))


@pytest.fixture(scope="module")
def logits(model):
    ids = prompt_ids(model, "the old mill where she kept seven grey cats and")
    with torch.no_grad():
        return model.module(ids[None]).logits[0].double()


@pytest.fixture(scope="module")
def allowed(words, logits):
    return words.allowed(ROOT).expand_as(logits)


def limited(logits, allowed, strength):
    penalty = torch.tensor(TEMPERATURE * strength, dtype=torch.float64)
    return torch.where(allowed, logits, logits - penalty)


def kl(changed, plain):
    return divergence(changed, plain, TEMPERATURE, None)


def test_the_mask_costs_minus_the_log_of_what_is_allowed(logits, allowed):
    changed = torch.where(allowed, logits, -1e30)
    found = kl(changed, logits)
    p = (logits / TEMPERATURE).softmax(1)
    expected = -(p * allowed).sum(1).log()
    costs = [penalised_cost(*m, math.inf) for m in masses(logits, allowed, TEMPERATURE)]
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-9)
    assert costs == pytest.approx(expected.tolist(), abs=1e-9)
    assert min(costs) > 0.1


@pytest.mark.parametrize("strength", [0.5, 3.0, 20.0])
def test_a_penalty_has_the_mass_and_the_cost_that_the_formulas_say(logits, allowed, strength):
    changed = limited(logits, allowed, strength)
    q = (changed / TEMPERATURE).softmax(1)
    found = masses(logits, allowed, TEMPERATURE)
    outside = [penalised_mass(*m, strength) for m in found]
    costs = [penalised_cost(*m, strength) for m in found]
    assert outside == pytest.approx((q * ~allowed).sum(1).tolist(), abs=1e-9)
    assert costs == pytest.approx(kl(changed, logits).tolist(), abs=1e-9)


def test_no_distribution_without_mass_outside_costs_less_than_the_mask(logits, allowed):
    draw = torch.Generator().manual_seed(0)
    mask = torch.where(allowed, logits, -1e30)
    best = kl(mask, logits)
    for size in (0.01, 0.3, 3.0):
        noise = size * torch.randn(logits.shape, generator=draw, dtype=torch.float64)
        other = mask + noise
        found = kl(other, logits)
        assert (found >= best - 1e-12).all()
        # The Pythagorean identity: what it costs more is its distance from the mask.
        assert torch.allclose(found - best, kl(other, mask), atol=1e-9)


def test_no_distribution_of_the_same_mass_outside_costs_less_than_a_penalty(logits, allowed):
    draw = torch.Generator().manual_seed(1)
    best = limited(logits, allowed, 2.0)
    own = torch.where(allowed, logits, -math.inf), torch.where(allowed, -math.inf, logits)
    noise = torch.randn(logits.shape, generator=draw, dtype=torch.float64)
    # Noise inside and outside that leaves both masses as the penalty has them.
    shifted = [
        noise
        - TEMPERATURE
        * (
            ((part + noise) / TEMPERATURE).logsumexp(1, keepdim=True)
            - (part / TEMPERATURE).logsumexp(1, keepdim=True)
        )
        for part in own
    ]
    other = best + torch.where(allowed, *shifted)
    q, r = ((x / TEMPERATURE).softmax(1) for x in (best, other))
    assert torch.allclose((q * allowed).sum(1), (r * allowed).sum(1), atol=1e-12)
    assert (kl(other, logits) > kl(best, logits)).all()


def test_no_penalty_costs_nothing_and_a_growing_one_comes_to_the_mask():
    inside, outside = math.log(0.25), math.log(0.75)
    assert penalised_cost(inside, outside, 0.0) == 0.0
    assert penalised_mass(inside, outside, 0.0) == pytest.approx(0.75)
    costs = [penalised_cost(inside, outside, s) for s in (1.0, 5.0, 50.0, math.inf)]
    assert costs == sorted(costs)
    assert costs[-2:] == pytest.approx([math.log(4)] * 2)
    assert penalised_mass(inside, outside, math.inf) == 0.0


def test_nothing_outside_costs_nothing_whatever_the_penalty():
    for strength in (0.0, 2.0, math.inf):
        assert penalised_cost(0.0, -math.inf, strength) == 0.0
        assert penalised_mass(0.0, -math.inf, strength) == 0.0


@pytest.mark.parametrize("target", [0.02, 0.1, 0.3])
def test_the_controller_keeps_the_mean_mass_to_its_bound_at_every_step(target):
    draw = torch.Generator().manual_seed(2)
    controller, found = Controller(target), []
    for p in torch.rand(300, generator=draw, dtype=torch.float64).tolist():
        found.append(penalised_mass(math.log(1 - p), math.log(p), controller.strength))
        controller.follow(found[-1])
        n, strength = len(found), controller.strength
        assert sum(found) / n <= target + strength / (controller.gain * n) + 1e-12
    assert sum(found[100:]) / 200 == pytest.approx(target, abs=0.05)


def test_a_controller_whose_target_is_everything_never_penalises():
    controller = Controller(1.0)
    for p in (0.1, 0.999, 1.0, 1 - 1e-16):
        mass = penalised_mass(math.log1p(-p) if p < 1 else -math.inf, math.log(p), 0.0)
        controller.follow(mass)
        assert controller.strength == 0.0


def test_a_limiter_masks_one_sequence_penalises_one_and_leaves_the_rest(words, logits):
    sampling = Sampling(max_new_tokens=4, temperature=TEMPERATURE, seed=0)
    scores = logits[-1:].float().expand(3, -1).contiguous()
    ids = torch.zeros(3, 1, dtype=torch.int64)
    limiter = Limiter(
        words, [ROOT] * 3, [0.0, math.inf, 0.0], 2, Controller(0.1, strength=2.0), sampling
    )
    found = limiter(ids, scores)
    plain = Limiter(words, [ROOT] * 3, [0.0] * 3, 2, Controller(1.0), sampling)(ids, scores)
    outside = ~words.allowed(ROOT)
    assert torch.equal(found[0], plain[0])
    assert torch.equal(found[:, ~outside], plain[:, ~outside])
    assert (found[1, outside] == -math.inf).all()
    lowered = (plain - found)[2, outside]
    assert torch.allclose(lowered, torch.tensor(2.0 * TEMPERATURE), atol=1e-4)
    assert limiter.costs[0][0] == 0.0
    assert limiter.outside[0][1] == 0.0
    assert 0 < limiter.costs[0][2] < limiter.costs[0][1]
    assert limiter.controller.strength == pytest.approx(
        2.0 + 16 * (limiter.outside[0][2] - 0.1)
    )
