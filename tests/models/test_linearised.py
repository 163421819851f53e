"""A linearised pass gives the same values, and gradients of a linear model."""

import pytest
import torch
from support.families import MODELS, PLACES, TOKENS, hook_count, logits, random_model
from torch import nn

from sae.base import UserError
from sae.models import linearised as rules
from sae.models.calls import hooked
from sae.models.hooks import find_site
from sae.models.linearised import linearised


@pytest.fixture(scope="module", params=PLACES)
def module(request):
    return random_model(*MODELS[request.param])


def first_stream(module):
    return find_site(module, "blocks.0.hook_resid_pre")


def total_and_gradient(module, stream, weights):
    """A linear function of the logits, and its gradient at the first block's input."""
    leaf = stream.clone().requires_grad_()
    with hooked(module, first_stream(module), lambda _: leaf):
        found = module(TOKENS)[0]
    total = (found.double() * weights).sum()
    return found, total, torch.autograd.grad(total, leaf)[0]


@pytest.fixture
def stream(module):
    seen = []
    with torch.no_grad(), hooked(module, first_stream(module), seen.append):
        module(TOKENS)
    return seen[0]


@pytest.fixture
def weights(module):
    draw = torch.Generator().manual_seed(1)
    return torch.randn(logits(module).shape, generator=draw, dtype=torch.float64)


def test_values_are_those_of_the_plain_pass_to_the_bit(module, stream, weights):
    expected, before = logits(module), hook_count(module)
    with linearised(module):
        found, _, gradient = total_and_gradient(module, stream, weights)
        with torch.no_grad():
            assert torch.equal(module(TOKENS)[0], expected)
    assert torch.equal(found, expected)
    assert hook_count(module) == before
    assert not any("forward" in vars(part) for part in module.modules())
    plain = total_and_gradient(module, stream, weights)[2]
    assert not torch.allclose(gradient, plain, rtol=0.01)


def test_without_biases_the_shares_of_the_stream_make_up_the_whole(module, stream, weights):
    with torch.no_grad():
        biases = {n: p.clone() for n, p in module.named_parameters() if n.endswith("bias")}
        for name in biases:
            module.get_parameter(name).zero_()
    try:
        with linearised(module):
            _, total, gradient = total_and_gradient(module, stream, weights)
    finally:
        with torch.no_grad():
            for name, bias in biases.items():
                module.get_parameter(name).copy_(bias)
    shares = (gradient.double() * stream.double()).sum()
    assert float(shares) == pytest.approx(float(total.detach()), rel=1e-4)


def test_an_exception_inside_leaves_no_trace(module):
    before, expected = hook_count(module), logits(module)
    with pytest.raises(ZeroDivisionError), linearised(module):
        raise ZeroDivisionError
    assert hook_count(module) == before
    assert not any("forward" in vars(part) for part in module.modules())
    assert torch.equal(logits(module), expected)


@pytest.mark.parametrize("rule", ["_norms", "_gates", "_is_activation"])
def test_a_model_that_a_rule_is_missing_for_is_refused_by_name(monkeypatch, rule):
    nothing = {"_norms": dict, "_gates": frozenset, "_is_activation": bool}[rule]
    monkeypatch.setattr(rules, rule, lambda _: nothing())
    module = random_model(*MODELS["llama"])
    sentence = (
        "no known way to linearise LlamaForCausalLM: it computes something else than norms"
    )
    with pytest.raises(UserError, match=sentence), linearised(module):
        pass


def test_a_model_with_a_gate_of_its_own_is_refused_by_name():
    module = random_model(*MODELS["llama"])

    class Gated(nn.Module):
        def __init__(self, own):
            super().__init__()
            self.own = own

        def forward(self, x):
            return self.own(x) * torch.sigmoid(x)

    module.model.layers[1].mlp = Gated(module.model.layers[1].mlp)
    with pytest.raises(UserError, match="no known way to linearise"), linearised(module):
        pass


def test_the_gradient_of_a_linear_model_is_the_plain_one():
    # Of a single token attention patterns are 1, so that nothing is left that is not linear.
    module = random_model(
        "GPT2LMHeadModel", MODELS["gpt2"][1] | {"activation_function": "linear"}
    )
    for block in module.transformer.h:
        block.ln_1 = block.ln_2 = nn.Identity()
    module.transformer.ln_f = nn.Identity()
    tokens, site = TOKENS[:1, :1], first_stream(module)
    found = []
    for context in (linearised(module), torch.enable_grad()):
        leaf = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0))
        leaf.requires_grad_()
        with context, hooked(module, site, lambda _, leaf=leaf: leaf):
            total = module(tokens)[0][0, -1, 3]
        found.append(torch.autograd.grad(total, leaf)[0])
    torch.testing.assert_close(*found)
