"""The sparse products against plain dense autograd, in float64."""

import pytest
import torch

from sae.architectures import StandardConfig, StandardSAE
from sae.core.losses import squared_error, weighted_l1, weighted_l1_on
from sae.core.sparse import decode_on, encode_on, support_of


def problem(batch=13, d_in=7, d_sae=19, seed=0, bias=-1.0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = [draw(d_sae, d_in), draw(d_sae) + bias, draw(d_sae, d_in), draw(d_in)]
    return draw(batch, d_in), [w.requires_grad_() for w in weights]


def dense_loss(x, w_enc, b_enc, w_dec, b_dec):
    feature_acts = torch.relu(x @ w_enc.t() + b_enc)
    x_hat = feature_acts @ w_dec + b_dec
    return squared_error(x, x_hat) + 0.3 * weighted_l1(feature_acts, w_dec)


def sparse_loss(x, w_enc, b_enc, w_dec, b_dec):
    with torch.no_grad():
        pre_acts = x @ w_enc.t() + b_enc
        active = pre_acts > 0
    support = support_of(active)
    values = encode_on(support, pre_acts[active], x, w_enc, b_enc)
    x_hat = decode_on(support, values, w_dec) + b_dec
    penalty = weighted_l1_on(values, support.columns, w_dec, len(x))
    return squared_error(x, x_hat) + 0.3 * penalty


@pytest.mark.parametrize(
    ("name", "bias"), [("usual", -1.0), ("nothing active", -99.0), ("all active", 99.0)]
)
def test_loss_and_every_gradient_equal_dense_autograd(name, bias):
    x, weights = problem(bias=bias)
    x.requires_grad_()
    dense = dense_loss(x, *weights)
    expected = torch.autograd.grad(dense, [x, *weights], allow_unused=True)
    sparse = sparse_loss(x, *weights)
    found = torch.autograd.grad(sparse, [x, *weights], allow_unused=True)
    torch.testing.assert_close(sparse, dense, rtol=1e-12, atol=1e-12)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_a_row_without_active_latents_reconstructs_to_the_bias():
    x, weights = problem()
    with torch.no_grad():
        x[3] = 0
        weights[1].clamp_(max=-0.1)
    active = x @ weights[0].t() + weights[1] > 0
    assert not active[3].any()
    assert active.any()
    dense, sparse = dense_loss(x, *weights), sparse_loss(x, *weights)
    torch.testing.assert_close(sparse, dense)


def test_an_activation_of_exactly_zero_is_not_active_and_gets_no_gradient():
    x = torch.ones(1, 1, dtype=torch.float64)
    weights = [
        torch.tensor([[1.0], [1.0]], dtype=torch.float64, requires_grad=True),
        torch.tensor([-1.0, 0.0], dtype=torch.float64, requires_grad=True),
        torch.ones(2, 1, dtype=torch.float64, requires_grad=True),
        torch.zeros(1, dtype=torch.float64, requires_grad=True),
    ]
    for loss in (dense_loss, sparse_loss):
        grad = torch.autograd.grad(loss(x, *weights), weights)[0]
        assert grad[0] == 0
        assert grad[1] != 0


def test_support_lists_entries_by_row_and_by_latent_and_counts_them():
    active = torch.rand(11, 6, generator=torch.Generator().manual_seed(1)) > 0.6
    support = support_of(active)
    values = torch.arange(int(active.sum()), dtype=torch.float32) + 1
    dense = torch.zeros(11, 6)
    dense[active] = values
    assert torch.equal(support.matrix(values).to_dense(), dense)
    assert torch.equal(support.transposed(values).to_dense(), dense.t())
    assert torch.equal(support.counts().long(), active.sum(0))


def sae_of(coefficient=3.0, **settings):
    sample = torch.randn(512, 16, generator=torch.Generator().manual_seed(0))
    config = StandardConfig(d_sae=48, l1_coefficient=coefficient, **settings)
    return StandardSAE(config, sample, torch.Generator().manual_seed(1)), sample[:64]


def test_the_step_takes_the_sparse_path_once_few_latents_are_active_with_the_same_result():
    sae, x = sae_of()
    dense = sae.step(x, progress=0.5)
    dense.loss.backward()
    expected = [p.grad.clone() for p in sae.parameters()]
    sae.zero_grad()
    sae.active_share.fill_(0.01)
    sparse = sae.step(x, progress=0.5)
    sparse.loss.backward()
    torch.testing.assert_close(sparse.loss, dense.loss)
    assert torch.equal(sparse.fired.long(), dense.fired.long())
    for parameter, grad in zip(sae.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-5)


def test_the_penalty_warms_up_linearly_and_its_coefficient_counts():
    sae, x = sae_of(l1_warm_up_fraction=0.2)
    quarter = sae.step(x, 0.05).losses["losses/l1_loss"]
    full = sae.step(x, 0.2).losses["losses/l1_loss"]
    later = sae.step(x, 0.9).losses["losses/l1_loss"]
    torch.testing.assert_close(4 * quarter, full)
    torch.testing.assert_close(later, full)
    other, _ = sae_of(coefficient=6.0, l1_warm_up_fraction=0.0)
    torch.testing.assert_close(other.step(x, 0.0).losses["losses/l1_loss"], 2 * full)


def test_the_first_reconstruction_is_scaled_to_the_rows():
    sae, x = sae_of()
    x_hat = sae.step(x, 0.0).x_hat.detach()
    best = (x * x_hat).sum() / x_hat.square().sum()
    assert 0.8 < best < 1.25
