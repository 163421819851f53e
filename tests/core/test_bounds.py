"""Bounds and integers of the products that find active latents: true, and not far off."""

import numba
import numpy as np
import pytest
import torch
from support.screening import Draw, usual

from sae.core import bounds, screen
from sae.core.int8_tile import HERE

pytestmark = pytest.mark.usefixtures("two_threads")
needs_int8 = pytest.mark.skipif(HERE is None, reason="no 8-bit product for this processor")


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
