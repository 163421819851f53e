"""Figures of a reconstruction, against direct formulas and known cases."""

import pytest
import torch

from sae.core.fidelity import ReconstructionStatistics, row_norms


def rows(n=700, d_in=12, d_sae=30):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d_in, generator=generator) * 3 + 40
    feature_acts = torch.relu(torch.randn(n, d_sae, generator=generator) - 1)
    feature_acts[:, 5] = 0
    return x, x + torch.randn(n, d_in, generator=generator), feature_acts


def metrics_of(x, x_hat, feature_acts, batch=700):
    statistics = ReconstructionStatistics(x.shape[1], feature_acts.shape[1])
    for start in range(0, len(x), batch):
        part = slice(start, start + batch)
        acts = feature_acts[part]
        active = acts > 0
        counts = active.sum(0), active.sum(1)
        statistics.add(x[part], x_hat[part], *counts, float(acts.double().sum()))
    return statistics.metrics()


def test_figures_equal_direct_formulas():
    x, x_hat, feature_acts = (t.double() for t in rows())
    found = metrics_of(*rows(), batch=93)
    error = (x - x_hat).square().sum()
    expected = {
        "explained_variance": 1 - error / (x - x.mean(0)).square().sum(),
        "mse": error / len(x),
        "l0": (feature_acts > 0).sum(1).double().mean(),
        "l1": feature_acts.sum(1).mean(),
        "cossim": torch.cosine_similarity(x, x_hat).mean(),
        "l2_ratio": (x_hat.norm(dim=1) / x.norm(dim=1)).mean(),
        "relative_reconstruction_bias": x_hat.square().sum() / (x * x_hat).sum(),
        "dead_fraction": torch.tensor(1 / 30),
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), rel=1e-6), name


def test_explained_variance_does_not_depend_on_the_batch_size():
    whole, pieces = metrics_of(*rows()), metrics_of(*rows(), batch=17)
    assert pieces == pytest.approx(whole, rel=1e-12)


def test_explained_variance_is_blind_to_a_constant_added_to_both():
    x, x_hat, feature_acts = rows()
    moved = metrics_of(x + 3, x_hat + 3, feature_acts)
    plain = metrics_of(x, x_hat, feature_acts)
    assert moved["explained_variance"] == pytest.approx(plain["explained_variance"], rel=1e-5)


def test_a_perfect_reconstruction_scores_one_and_the_mean_scores_zero():
    x, _, feature_acts = rows()
    assert metrics_of(x, x, feature_acts)["explained_variance"] == 1
    mean = x.mean(0).expand_as(x)
    assert metrics_of(x, mean, feature_acts)["explained_variance"] == pytest.approx(0, abs=1e-6)
    zero = torch.zeros_like(x)
    assert metrics_of(x, zero, feature_acts)["explained_variance"] < 0


def test_norms_of_rows_have_the_gradient_of_torchs_and_none_where_a_row_is_zero():
    rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[3] = 0
    rows.requires_grad_()
    weights = torch.linspace(-1, 2, 7, dtype=torch.float64)
    norms, expected = row_norms(rows), torch.linalg.vector_norm(rows, dim=1)
    assert torch.equal(norms, expected)
    (found,) = torch.autograd.grad(norms @ weights, rows)
    (wanted,) = torch.autograd.grad(expected @ weights, rows)
    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=0)
    assert not found[3].any()
