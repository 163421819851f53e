"""Every product finds the same entries: those of exact pre-activations, rounded once."""

import time

import numpy as np
import pytest
import torch
from support.screening import Draw, check, rounded_once, usual

from sae.core import cpu_kernels, screen
from sae.core.int8_tile import HERE
from sae.core.select import Above, BatchTopK, TopK

pytestmark = pytest.mark.usefixtures("two_threads")
needs_int8 = pytest.mark.skipif(HERE is None, reason="no 8-bit product for this processor")
PRODUCTS = [
    "float32",
    "bfloat16",
    pytest.param("int8", marks=needs_int8),
]


@pytest.mark.slow
@pytest.mark.parametrize("product", PRODUCTS)
def test_drawn_problems_have_the_entries_and_every_bit_of_the_dense_definition(product):
    for seed in range(800):
        draw = Draw(seed)
        problem = draw.problem()
        pre_acts = rounded_once(*problem)
        try:
            check(problem, draw.selection(pre_acts), product, pre_acts)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}") from error


def outlying_coordinate(draw):
    x, weight, bias = usual(draw)
    x[:, 3] += 1e4
    weight[:, 3] *= 0.01
    return x, weight, bias


def near_ties(draw):
    x, weight, bias = usual(draw)
    weight[:] = weight[0]
    weight[::3] *= 1 + 2.0**-23
    bias[:] = 0.1
    bias[::5] = torch.nextafter(bias[::5], torch.tensor(1.0))
    return x, weight, bias


def exact_ties(draw):
    x, weight, bias = usual(draw)
    weight[75:] = weight[:75]
    bias[75:] = bias[:75]
    return x, weight, bias


def equal_rows(draw):
    x, weight, bias = usual(draw)
    return x[:1].repeat(len(x), 1), weight, bias


def equal_latents(draw):
    x, weight, bias = usual(draw)
    return x, weight[:1].repeat(len(weight), 1), torch.full_like(bias, 0.01)


def zero_rows_and_latents(draw):
    x, weight, bias = usual(draw)
    x[::3] = 0
    weight[::4] = 0
    bias[::2] = 0
    return x, weight, bias


def nothing_but_zeros(draw):
    return tuple(torch.zeros_like(t) for t in usual(draw))


def denormals(draw):
    x, weight, bias = usual(draw)
    x[::2] *= 1e-39
    weight[::3] *= 1e-39
    return x, weight, bias * torch.where(torch.arange(150) % 2 == 0, 1e-40, 0)


def denormals_of_huge_latents(draw):
    x, weight, bias = usual(draw)
    return x * 1e-40, weight * 1e15, bias * 1e-26


def where_squares_vanish(draw):
    x, weight, _ = usual(draw, d_in=1)
    return x * 1e-20, weight, torch.zeros(150)


def one_huge_weight(size):
    def problem(draw):
        x, weight, bias = usual(draw)
        weight[17, 5] = size
        return x, weight, bias

    problem.__name__ = f"one_weight_of_{size:g}"
    return problem


def every_weight(size):
    def problem(draw):
        x, weight, bias = usual(draw)
        return x, weight * size, bias

    problem.__name__ = f"every_weight_times_{size:g}"
    return problem


def rows_without_numbers(draw):
    x, weight, bias = usual(draw)
    x[2, 4], x[5, 0], x[7, 9], x[11] = torch.nan, torch.inf, -torch.inf, torch.nan
    return x, weight, bias


def latents_without_numbers(draw):
    x, weight, bias = usual(draw)
    weight[2, 4], weight[5, 0], weight[7, 9], weight[149] = (
        torch.nan, torch.inf, -torch.inf, torch.nan
    )  # fmt: skip
    bias[20], bias[21], bias[22] = torch.nan, torch.inf, -torch.inf
    return x, weight, bias


def no_numbers_at_all(draw):
    return tuple(torch.full_like(t, torch.nan) for t in usual(draw))


def sums_that_overflow_on_the_way(draw):
    x, weight, bias = usual(draw)
    x[:, :4] = torch.tensor([3e38, -3e38, 1e38, -1e38])
    weight[::2, :2], weight[::2, 2:4] = 2.0, 3.0
    weight[1::2, :4] = 0
    bias[::7] = 3e38
    return x, weight, bias


def values_that_overflow(draw):
    x, weight, bias = usual(draw)
    return x * 1e20, weight * 1e19, bias * 1e38


def far_from_zero(draw):
    x, weight, bias = usual(draw)
    centre = 1000 * draw.normal(70)
    return x + centre, weight, bias - weight @ centre


def close_rows_whose_sums_cancel(draw):
    # Rounding in float64, on the way, changes values by more than rows differ by.
    x, weight = 1e-8 * draw.normal(20, 64), draw.normal(150, 64)
    x[:, :16] = 1e8 * draw.normal(16)
    x[:, 16:32] = x[:, :16].roll(3, 1)
    weight[:, 16:32] = -weight[:, :16].roll(3, 1)
    return x, weight, torch.zeros(150)


def one_row_unlike_the_others(draw):
    x, weight, bias = usual(draw)
    x[13] *= 1e6
    return x, weight, bias


def one_row_of_wide_range(draw):
    x, weight, bias = usual(draw)
    x[3] *= torch.from_numpy(10.0 ** draw.random.uniform(-30, 10, 70)).float()
    return x, weight, bias


def none_positive(draw):
    x, weight, bias = usual(draw)
    return x, weight, bias - 100


ADVERSARIES = [
    outlying_coordinate, near_ties, exact_ties, equal_rows, equal_latents,
    zero_rows_and_latents, nothing_but_zeros, denormals, denormals_of_huge_latents,
    where_squares_vanish, one_huge_weight(1e4), one_huge_weight(1e20), one_huge_weight(1e38),
    every_weight(1e20), every_weight(1e38), rows_without_numbers, latents_without_numbers,
    no_numbers_at_all, sums_that_overflow_on_the_way, values_that_overflow, far_from_zero,
    close_rows_whose_sums_cancel, one_row_unlike_the_others, one_row_of_wide_range,
    none_positive,
]  # fmt: skip


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("adversary", ADVERSARIES, ids=lambda adversary: adversary.__name__)
def test_adversarial_rows_and_latents_change_no_bit(adversary, product):
    for seed in range(3):
        problem = adversary(Draw(seed))
        pre_acts = rounded_once(*problem)
        quantile = np.quantile(np.nan_to_num(pre_acts, posinf=0, neginf=0), 0.9)
        for selection in (
            Above(torch.zeros(len(problem[1]))),
            Above(torch.full((len(problem[1]),), float(quantile))),
            TopK(1), TopK(20), TopK(150), BatchTopK(1), BatchTopK(20),
        ):  # fmt: skip
            check(problem, selection, product, pre_acts)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("selection", [Above(torch.zeros(150)), TopK(3), BatchTopK(3)])
def test_of_no_rows_nothing_is_chosen(selection, product):
    x, weight, bias = usual(Draw(0))
    found = selection.entries(x[:0], weight, bias, product)
    assert found.counts.shape == (0,)
    assert len(found.columns) == len(found.values) == 0


@needs_int8
@pytest.mark.parametrize("hold", ["the largest", "none of them"])
def test_integers_are_collected_once_more_where_sampled_tiles_mislead(hold):
    draw, width = Draw(0), HERE.width
    n_tiles = 4096 // width + 1
    m, k = n_tiles * width - 3, 700
    taken = 512 // width
    sampled = {s * (n_tiles - 1) // taken for s in range(taken)}
    tiles = torch.arange(m) // width
    inside = torch.tensor([tile in sampled for tile in range(n_tiles)])[tiles]
    x, weight = draw.normal(7, 64).abs(), draw.normal(m, 64).abs()
    weight[inside if hold == "the largest" else ~inside] *= 100
    problem = x, weight, torch.zeros(m)
    found = check(problem, TopK(k), "int8")
    # All entries are positive, and more than all were left open: some were twice.
    assert (found.candidates > 7 * m) == (hold == "the largest")


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("hold", ["the largest", "none of them"])
def test_products_are_read_once_more_where_the_sample_misleads(hold, product):
    draw, m, k = Draw(0), 1040, 300
    x, weight = draw.normal(7, 64).abs(), draw.normal(m, 64).abs()
    sample = np.empty(512, np.float32)
    firsts = torch.arange(32) * (m - 16) // 31
    sampled = torch.zeros(m, dtype=torch.bool)
    sampled[firsts[:, None] + torch.arange(16)] = True
    weight[sampled if hold == "the largest" else ~sampled] *= 100
    problem = x, weight, torch.zeros(m)
    pre_acts = rounded_once(*problem)
    for row in pre_acts:
        guess = cpu_kernels._careful_guess(row, np.zeros(m, np.float32), k, sample)
        assert guess > 0
        assert ((row > guess).sum() < k) == (hold == "the largest")
    check(problem, TopK(k), product, pre_acts)


def test_tiny_problems_and_float64_are_for_float32s_product():
    cpu = torch.device("cpu")
    assert screen.fastest(10, 20, 30, torch.float32, cpu) == "float32"
    assert screen.fastest(4096, 65536, 4096, torch.float64, cpu) == "float32"
    assert screen.matmuls_here(cpu, torch.float64) == ("float32",)


@pytest.mark.slow
def test_the_fastest_product_is_one_that_can_be_computed_here(monkeypatch):
    cpu = torch.device("cpu")
    here = screen.matmuls_here(cpu, torch.float32)
    assert ("int8" in here) == (HERE is not None)
    monkeypatch.setattr(screen, "_TRIAL", 1 << 24)
    find = screen.fastest.__wrapped__
    for rows in (2100, 40000):
        assert find(64, 2048, rows, torch.float32, cpu) in here
    # However few rows a large dictionary leaves for the trial.
    monkeypatch.setattr(screen, "_TRIAL", 1)
    for quick in ("float32", *here[2:]):

        def pretend(x, *given, quick=quick):
            time.sleep(1e-4 * len(x) * (1 + 2 * (given[-1] != quick)))

        monkeypatch.setattr(screen, "chosen", pretend)
        assert find(64, 2048, 40000, torch.float32, cpu) == quick


def test_a_float32_product_that_torch_may_round_leaves_more_open():
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 64, generator=generator) for n in (40, 500))
    zeros = torch.zeros(500)
    before = torch.get_float32_matmul_precision()
    found = []
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        found.append(screen.chosen(x, weight, zeros, zeros + 2, 0, "float32"))
    torch.set_float32_matmul_precision(before)
    assert torch.equal(found[0].values, found[1].values)
    assert found[1].candidates > 1.01 * found[0].candidates
