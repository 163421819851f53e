"""Ridge regression from streamed sums: the planted map, the textbook's form, the choice."""

import pytest
import torch

from sae.lenses.ridge import STRENGTHS, Affine, Sums, chosen_ridge, ridge, squared_error


def planted(n=400, d_in=7, d_out=5, noise=0.0, seed=0):
    draw = torch.Generator().manual_seed(seed)
    map_draw = torch.Generator().manual_seed(9)
    # Neither centred nor of one scale, as streams are not.
    scales = torch.logspace(-1, 2, d_in, dtype=torch.float64)
    x = torch.randn(n, d_in, generator=draw).double() * scales + 3
    found = Affine(
        torch.randn(d_in, d_out, generator=map_draw).double(),
        torch.randn(d_out, generator=map_draw).double(),
    )
    y = found(x) + noise * torch.randn(n, d_out, generator=draw).double()
    return x, y, found


def sums_of(x, y, parts=3):
    sums = Sums(x.shape[1], y.shape[1])
    for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
        sums.add(a, b)
    return sums


def test_a_planted_map_is_found_again():
    x, y, truth = planted()
    found = ridge(sums_of(x, y), 1e-13)
    torch.testing.assert_close(found.W, truth.W, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.b, truth.b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("strength", [1e-6, 1e-2, 1.0, 30.0])
def test_it_equals_least_squares_with_the_penalty_as_more_rows(strength):
    x, y, _ = planted(noise=2.0)
    centred, target = x - x.mean(0), y - y.mean(0)
    penalty = strength * float(centred.square().sum(0).mean())
    rows = torch.cat([centred, penalty**0.5 * torch.eye(x.shape[1]).double()])
    targets = torch.cat([target, torch.zeros(x.shape[1], y.shape[1]).double()])
    expected = torch.linalg.lstsq(rows, targets).solution
    found = ridge(sums_of(x, y), strength)
    torch.testing.assert_close(found.W, expected, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(found.b, y.mean(0) - x.mean(0) @ expected, rtol=1e-8, atol=1e-8)


def test_the_sums_tell_the_squared_error_of_any_map():
    x, y, truth = planted(noise=1.0)
    other = Affine(truth.W + 0.1, truth.b - 2)
    expected = float((y - other(x)).square().sum())
    assert squared_error(sums_of(x, y), other) == pytest.approx(expected, rel=1e-9)


def test_sums_of_parts_add_up_to_those_of_all():
    x, y, _ = planted()
    both = sums_of(x[:150], y[:150]) + sums_of(x[150:], y[150:])
    torch.testing.assert_close(ridge(both, 0.1).W, ridge(sums_of(x, y), 0.1).W)
    assert both.n_rows == len(x)


def test_an_endless_penalty_leaves_the_mean():
    x, y, _ = planted()
    found = ridge(sums_of(x, y), 1e12)
    torch.testing.assert_close(found(x), y.mean(0).expand_as(y), atol=1e-4, rtol=1e-4)


def test_rows_that_are_all_alike_are_mapped_to_the_mean():
    x, y = torch.ones(20, 3).double(), planted(20)[1]
    torch.testing.assert_close(ridge(sums_of(x, y), 0.1)(x), y.mean(0).expand_as(y))


def test_the_strength_that_errs_least_on_other_rows_is_chosen():
    # Fewer noisy rows than dimensions ask for a strong penalty, many clean ones for none.
    few = planted(12, 30, 4, noise=30.0), planted(200, 30, 4, noise=30.0, seed=1)
    many = planted(4_000, 30, 4), planted(200, 30, 4, seed=1)
    chosen = []
    for (x, y, _), (other_x, other_y, _) in (few, many):
        fitted, judged = sums_of(x, y), sums_of(other_x, other_y)
        strength, found = chosen_ridge(fitted, judged)
        errors = [squared_error(judged, ridge(fitted, one)) for one in STRENGTHS]
        assert strength == STRENGTHS[errors.index(min(errors))]
        torch.testing.assert_close(found.W, ridge(fitted + judged, strength).W)
        chosen.append(strength)
    assert chosen[0] > chosen[1] == STRENGTHS[0]


def test_a_map_leaves_rows_in_their_precision():
    found = Affine(torch.eye(3), torch.ones(3))
    assert found(torch.zeros(2, 4, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
