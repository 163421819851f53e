"""Every product finds the same entries: those of exact pre-activations, rounded once."""

import threading
import time

import numpy as np
import pytest
import torch

from sae.core import cpu_kernels, jit, screen
from sae.core.int8_tile import HERE
from sae.core.select import Above, BatchTopK, TopK

pytestmark = pytest.mark.usefixtures("two_threads")
needs_int8 = pytest.mark.skipif(HERE is None, reason="no 8-bit product for this processor")
PRODUCTS = [
    "float32",
    "bfloat16",
    pytest.param("int8", marks=needs_int8),
]


def in_order(x, weight):
    """Return inner products of pairs of rows: float64, in the order that `exact` sums them."""
    products = x.astype(np.float64) * weight.astype(np.float64)
    d = products.shape[1]
    whole = d - d % 16
    sums = np.zeros((len(x), 16))
    for at in range(0, whole, 16):
        sums += products[:, at : at + 16]
    sums = sums[:, :8] + sums[:, 8:]
    for half in (4, 2, 1):
        sums = sums[:, :half] + sums[:, half:]
    total = sums[:, 0]
    for q in range(whole, d):
        total = total + products[:, q]
    return total


def rounded_once(x, weight, bias):
    """Return `x @ weight.T + bias`, computed in float64 and rounded to float32.

    Where the order of a sum could change what it is rounded to, the sum is made in order.
    """
    x, weight, bias = (t.numpy() for t in (x, weight, bias))
    with np.errstate(all="ignore"):
        wide, latents = x.astype(np.float64), weight.astype(np.float64)
        value = wide @ latents.T + bias
        off = 2.0**-40 * (np.abs(wide) @ np.abs(latents).T + np.abs(bias))
        low, high = (value - off).astype(np.float32), (value + off).astype(np.float32)
        found = value.astype(np.float32)
        i, j = np.nonzero(~((low == high) & (low != 0)))
        found[i, j] = (in_order(x[i], weight[j]) + bias[j].astype(np.float64)).astype(
            np.float32
        )
    return found


def kept(pre_acts, selection):
    """Return which of the pre-activations a selection keeps, by sorting all of them."""
    if isinstance(selection, Above):
        return pre_acts > selection.bound.numpy()
    rows = pre_acts if isinstance(selection, TopK) else pre_acts.reshape(1, -1)
    n = selection.k if isinstance(selection, TopK) else selection.k * len(pre_acts)
    order = np.argsort(-np.where(np.isnan(rows), -np.inf, rows), axis=1, kind="stable")
    keep = np.zeros(rows.shape, bool)
    np.put_along_axis(keep, order[:, :n], True, axis=1)
    return (keep & (rows > 0)).reshape(pre_acts.shape)


def check(problem, selection, product, pre_acts=None):
    if pre_acts is None:
        pre_acts = rounded_once(*problem)
    mask = kept(pre_acts, selection)
    found = selection.entries(*problem, product)
    assert found.counts.tolist() == mask.sum(1).tolist()
    assert np.array_equal(found.columns.numpy(), np.nonzero(mask)[1])
    bits = found.values.numpy().view(np.int32)
    assert np.array_equal(bits, pre_acts[mask].view(np.int32))
    return found


class Draw:
    """Problems and selections of one seed."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)

    def one_of(self, *things):
        return things[self.random.integers(len(things))]

    def normal(self, *shape):
        return torch.from_numpy(self.random.standard_normal(shape, np.float32))

    def scale(self):
        return float(10 ** self.random.uniform(-20, 15)) if self.random.random() < 0.4 else 1.0

    def scales(self, n):
        spread = self.random.uniform(-20, 15, (n, 1))
        if self.random.random() < 0.7:
            spread = spread[:1]
        return torch.from_numpy(10.0**spread).float()

    def problem(self):
        random = self.random
        d = int(self.one_of(1, 7, 16, 63, 64, 65, 128, random.integers(1, 301)))
        m = int(self.one_of(1, 15, 16, 17, 33, 64, 100, 257, random.integers(1, 701)))
        n = int(self.one_of(1, 2, 5, 6, 7, 12, random.integers(1, 51)))
        if random.random() < 0.15:
            # Many equal entries.
            x, weight, bias = (
                torch.from_numpy(random.integers(-2, 3, shape)).float()
                for shape in ((n, d), (m, d), (m,))
            )
            return x * self.scale(), weight, bias * self.scale()
        weight = self.normal(m, d)
        if random.random() < 0.5:
            latents = torch.from_numpy(random.integers(0, m, (n, 4)))
            x = weight[latents].sum(1) + 0.3 * self.normal(n, d)
        else:
            x = self.normal(n, d)
        x += self.one_of(0, 0, 10, 1000) * self.normal(d)
        x[:, int(random.integers(d))] *= self.one_of(1, 1, 1e4)
        if random.random() < 0.4:
            x, weight = x * self.scales(n), weight * self.scales(m)
        usual = (x.double() @ weight.double().t()).abs().median().clamp(1e-30, 1e30).float()
        bias = self.normal(m) * usual * self.one_of(0, 1, 1, self.scale())
        return x, weight, bias

    def selection(self, pre_acts):
        d_sae = pre_acts.shape[1]
        k = int(self.one_of(1, 2, 3, 8, 32, d_sae, d_sae + 5))
        if (kind := self.one_of(Above, Above, TopK, BatchTopK)) is not Above:
            return kind(k)
        bound = torch.zeros(d_sae)
        if self.random.random() < 0.7:
            finite = torch.from_numpy(pre_acts).nan_to_num(0, 3e38, -3e38)
            # Entries equal to their bound are not above it.
            bound = finite[int(self.random.integers(len(finite)))].clone()
            if self.random.random() < 0.5:
                bound = torch.full_like(bound, float(finite.quantile(0.9)))
        for special in (torch.inf, -torch.inf, torch.nan):
            if self.random.random() < 0.15:
                bound[torch.from_numpy(self.random.random(d_sae) < 0.3)] = special
        return Above(bound)


@pytest.mark.slow
@pytest.mark.parametrize("product", PRODUCTS)
def test_drawn_problems_have_the_entries_and_every_bit_of_the_dense_definition(product):
    for seed in range(1000):
        draw = Draw(seed)
        problem = draw.problem()
        pre_acts = rounded_once(*problem)
        try:
            check(problem, draw.selection(pre_acts), product, pre_acts)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}") from error


def usual(draw, n=20, d_in=70, d_sae=150):
    weight = draw.normal(d_sae, d_in) / d_in**0.5
    latents = torch.from_numpy(draw.random.integers(0, d_sae, (n, 4)))
    x = weight[latents].sum(1) + 0.2 * draw.normal(n, d_in) / d_in**0.5
    return x, weight, 0.1 * draw.normal(d_sae) - 0.1


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
