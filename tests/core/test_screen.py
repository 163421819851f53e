"""Every product finds the same entries: those of exact pre-activations, rounded once."""

import os
import threading
import time
from pathlib import Path

import numba
import numpy as np
import pytest
import torch

from sae.core import bounds, cpu_kernels, jit, screen, vectors
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
    for seed in range(800):
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


class Integers:
    """Rows and latents as the kernels round them, and the bounds that they make of them."""

    def __init__(self, x, weight, bias, bound, centre):
        from sae.core import int8_rounding

        self.x, self.latents = x, len(weight)
        self.packed = int8_rounding.packed(*(t.numpy() for t in (weight, bias, bound, centre)))
        n = -(-len(x) // 6) * 6
        turned = np.empty(self.packed.signs.shape, np.float32)
        self.integers = np.zeros((n, self.packed.fine.shape[1]), np.uint8)
        self.numbers, self.sizes = (
            np.zeros((n, 3), np.float32),
            np.empty((len(x), 3), np.float32),
        )
        for r in range(len(x)):
            int8_rounding.round_row(
                x[r].numpy(), self.packed, turned,
                self.integers[r], self.numbers[r], self.sizes[r],
            )  # fmt: skip

    def first(self):
        """Return the upper bounds of the fast product."""
        return first_bounds(self.packed, self.integers, self.numbers)

    def second(self):
        """Return those of the second integers, which are listed entry by entry."""
        from sae.core import int8_kernels

        rows, upper = (self.integers, self.numbers, self.sizes), self.first()
        n, latents = len(self.x), self.latents
        columns, values = np.empty((n, latents), np.int32), np.empty((n, latents), np.float32)
        ends, seen = np.zeros(n, np.int64), np.zeros(n, np.int64)
        for begin in range(0, n, 6):
            int8_kernels._collect_open(
                rows, begin, min(begin + 6, n), self.packed.fine, self.packed.facts,
                upper[begin : begin + 6], 0, latents, np.full(n, -np.inf, np.float32),
                (columns, values, ends, seen),
            )  # fmt: skip
        assert (ends == latents).all()
        assert (columns == np.arange(latents)).all()
        return values


def first_bounds(packed, integers, numbers):
    from sae.core import int8_kernels

    n_tiles = len(packed.tiles)
    upper = np.empty((len(integers), n_tiles * HERE.width + 64), np.float32)
    rows = integers, numbers, np.empty((len(integers), 3), np.float32)
    for begin in range(0, len(integers), 6):
        some = upper[begin : begin + 6]
        int8_kernels._bounds(rows, begin, packed, 0, n_tiles, some, 0)
    return upper


@needs_int8
@pytest.mark.slow
def test_bounds_of_integers_are_above_what_they_bound_and_not_far():
    for seed in range(60):
        draw = Draw(seed)
        if seed % 2:
            x, weight, bias = usual(draw, d_in=(70, 64, 200)[seed % 3])
            x += 3
        else:
            x, weight, bias = draw.problem()
        bound = 0.1 * draw.normal(len(weight))
        centre = bounds.centre_of(x)
        rounded = Integers(x, weight, bias, bound, centre)
        wide, latents = x.double().numpy(), weight.double().numpy()
        exact = wide @ latents.T + bias.double().numpy() - bound.double().numpy()
        near = np.linalg.norm((x - centre).double().numpy(), axis=1)[:, None]
        product = near * np.linalg.norm(latents, axis=1)
        # What does not depend on the rounding of rows: shifts, in float32.
        shift = np.abs(wide) @ np.abs(latents).T + np.abs(bias.numpy()) + np.abs(bound.numpy())
        for upper, share in ((rounded.first(), 0.03), (rounded.second(), 0.001)):
            over = upper[: len(x), : len(weight)].astype(np.float64) - exact
            assert (over >= 0).all()
            if seed % 2:
                assert (over < 2 * share * product + 1e-5 * shift).all()
                assert over.max() > 0.01 * share * product.max()


@needs_int8
def test_bounds_of_integers_hold_where_all_that_is_rounded_off_points_the_same_way():
    from sae.core import int8_rounding

    random, d = np.random.default_rng(0), 512
    zeros = torch.zeros(20)
    signs = Integers(
        torch.zeros(1, d), torch.zeros(20, d), zeros, zeros, torch.zeros(d)
    ).packed.signs
    rotation, between = np.empty((d, d), np.float32), np.empty(d, np.float32)
    for row, out in zip(np.eye(d, dtype=np.float32), rotation, strict=True):
        int8_rounding._turn(row, 0 * row, signs, between, out)
    # Rounded down by almost a half, once turned; one coordinate makes the unit one.
    turned = random.integers(15, 20, (20, d)) + 0.49
    turned *= np.where(random.random(turned.shape) < 0.5, -1, 1)
    turned[:, 6], turned[:, 7] = 127, 0
    weight = torch.from_numpy(turned @ rotation.T.astype(np.float64)).float()
    rounded = Integers(torch.cat([weight, -weight]), weight, zeros, zeros, torch.zeros(d))
    exact = (rounded.x.double() @ weight.double().t()).numpy()
    for upper in (rounded.first()[:40, :20], rounded.second()):
        over = upper - exact
        assert (over >= 0).all()
        # No bound could be much smaller: of opposite rows it is off by twice as much.
        same, opposite = np.diag(over[:20]), np.diag(over[20:])
        assert (same < 0.3 * opposite).all()


@needs_int8
@pytest.mark.parametrize("d_in", [64, 128, 576, 1024])
def test_integers_that_rows_and_latents_are_packed_as_are_within_what_sums_hold(d_in):
    draw = Draw(d_in)
    one = torch.eye(d_in)[::7]
    both = draw.normal(20, d_in).sign()
    vectors = torch.cat([draw.normal(20, d_in), one, both, draw.normal(20, d_in) ** 9])
    zeros = torch.zeros(len(vectors))
    rounded = Integers(vectors, vectors, zeros, zeros, torch.zeros(d_in))
    fine = rounded.packed.fine[: len(vectors)].astype(np.int64)
    integers = rounded.integers[: len(vectors)].astype(np.int64) - 128
    p, x = fine[:, d_in:], integers[:, :d_in]
    assert abs(p).max() <= 127
    assert abs(x).max() <= 127
    assert abs(p).max(1).min() > 0
    # Two products with the second integers of a latent fit 16 bits, whatever they are.
    assert abs(fine[:, :d_in]).max() <= 63
    assert abs(integers[:, d_in:]).max() <= 63
    assert (rounded.packed.facts[: len(vectors), 5] == fine.sum(1)).all()
    if HERE.narrow:
        assert abs(p).reshape(-1, 2).sum(1).max() <= 128
        for integers, longest in ((p, 153), (x, 213)):
            chunks = integers.reshape(len(integers), -1, 8, 2, 2)
            assert np.square(chunks).sum((2, 4)).max() <= longest**2


def extreme(random, shape, longest, largest_pair):
    """Return integers of ±127 and as many more as lanes and pairs hold."""
    found = np.zeros((shape[0] * shape[1] // 32, 8, 2, 2), np.int64)
    for chunk in found:
        for half in range(2):
            lane, room = chunk[:, half], longest**2
            for place in random.permutation(16):
                pair, at = divmod(place, 2)
                most = min(127, int(room**0.5), largest_pair - abs(lane[pair, 1 - at]))
                if random.random() < 0.3:
                    most = random.integers(most + 1)
                lane[pair, at] = most
                room -= most**2
    return found.reshape(shape)


@needs_int8
@pytest.mark.parametrize("width", [64, 128, 576, 1024])
def test_sums_of_extreme_integers_are_exact(width):
    from sae.core import int8_rounding

    random = np.random.default_rng(width)
    n, latents = 24, 2 * HERE.width
    zeros = torch.zeros(latents)
    packed = Integers(
        torch.zeros(1, width), torch.zeros(latents, width), zeros, zeros, torch.zeros(width)
    ).packed
    if HERE.narrow:
        x = extreme(random, (n, width), 213, 254)
        w = extreme(random, (latents, width), 153, 128)
    else:
        x, w = np.full((n, width), 127), np.full((latents, width), 127)
    # The same signs, opposite ones, and others; and rows that have nothing but zeros.
    signs = np.where(random.random((n + latents, width)) < 0.5, -1, 1)
    signs[: n // 2], signs[n : n + latents // 2] = 1, 1
    signs[: n // 4], signs[n : n + latents // 4] = -1, -1
    x, w = x * signs[:n], w * signs[n:]
    x[-1] = 0
    packed.fine[:, width:] = w
    for p in range(2):
        int8_rounding._pack_tile(p, packed.fine, packed.tiles, packed.starts)
    packed.numbers[:] = np.array([1, 0, 0, 0], np.float32)[:, None]
    numbers = np.tile(np.array([1, 0, 0], np.float32), (n, 1))
    found = first_bounds(packed, (x + 128).astype(np.uint8), numbers)
    # Below 2²⁴ float32 holds every integer.
    assert np.array_equal(found[:, :latents].astype(np.int64), x @ w.T)
    assert abs(x @ w.T).max() > 32768


@needs_int8
@pytest.mark.parametrize("n", [128, 256, 1152, 8192])
def test_inner_products_of_extreme_bytes_are_exact(n):
    from sae.core.int8_tile import dot_of_bytes

    @numba.njit
    def dots(x, w):
        n = x.shape[1]
        return [dot_of_bytes(x[i].ctypes.data, w[i].ctypes.data, n) for i in range(len(x))]

    random = np.random.default_rng(n)
    x = random.choice(np.array([0, 1, 65, 191, 254, 255], np.uint8), (50, n))
    w = random.choice(np.array([-63, 63, 0, 5], np.int8), (50, n))
    # The largest pairs that rounding gives, of one sign and of two.
    w[:10, n // 2 :] = np.tile([127, 1], n // 4)
    w[10:20, n // 2 :] = np.tile([-64, -64], n // 4)
    w[20:30, n // 2 :] = np.tile([-127, 1], n // 4)
    x[:25:2] = 255
    assert dots(x, w) == (x.astype(np.int64) * w).sum(1).tolist()


@pytest.mark.parametrize("product", ["float32", "bfloat16"])
def test_bounds_of_a_product_of_floats_are_on_both_sides_of_what_they_bound(product):
    for seed in range(60):
        draw = Draw(seed)
        x, weight, bias = usual(draw, d_in=3000) if seed % 10 == 0 else draw.problem()
        bound = draw.normal(len(weight)) * bias.abs()
        narrow = weight.bfloat16() if product == "bfloat16" else weight
        given = x.to(narrow.dtype)
        p = (given @ narrow.t()).double()
        errors = screen._LatentErrors.of(weight, narrow, bias, bound).errors(x, given)
        shifts, slacks, norms, fars, relative = (t.double() for t in errors)
        far = fars[:, None] * norms + relative * p.abs()
        exact = x.double() @ weight.double().t() + bias.double() - bound.double()
        assert (exact <= p + far + shifts).all()
        assert (exact >= p - far + shifts - slacks).all()
        if seed % 10 == 0:
            size = x.norm(dim=1)[:, None] * weight.norm(dim=1)
            assert (
                far < {"float32": 1e-3, "bfloat16": 0.01}[product] * size + p.abs() / 100
            ).all()


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


def test_compiled_code_older_than_a_kernels_source_is_forgotten(tmp_path):
    sources, compiled = tmp_path / "core", tmp_path / "cache"
    sources.mkdir()
    compiled.mkdir()
    (sources / "kernel.py").touch()
    (sources / "part.py").touch()
    old, new, other = (compiled / name for name in ("old.nbi", "new.nbi", "kernel.cpython.pyc"))
    for file in (old, new, other):
        file.touch()
    now = time.time()
    for file, age in (
        (sources / "kernel.py", 100), (sources / "part.py", 50),
        (old, 70), (new, 30), (other, 90),
    ):  # fmt: skip
        os.utime(file, (now - age, now - age))
    jit._forget_stale(sources, compiled)
    assert sorted(file.name for file in compiled.iterdir()) == ["kernel.cpython.pyc", "new.nbi"]
    jit._forget_stale(sources, tmp_path / "nothing here")


def test_what_is_forgotten_is_where_the_kernels_are_kept():
    assert jit._cache() == Path(vectors.dot.stats.cache_path)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("n", "part"), [(0, 4), (1, 4), (4, 4), (5, 4), (1000, 7)])
def test_threads_do_every_part_once(threads, n, part):
    torch.set_num_threads(threads)
    done, lock = [], threading.Lock()

    def work(first, last):
        assert 0 < last - first <= part
        with lock:
            done.extend(range(first, last))

    jit.in_threads(work, n, part)
    assert sorted(done) == list(range(n))


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_in_a_thread_is_raised(threads):
    torch.set_num_threads(threads)

    def work(first, last):
        if first <= 12 < last:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        jit.in_threads(work, 20, 3)
    jit.in_threads(work, 12, 3)


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
