"""Problems for the search of active latents, and what is right for them, told densely."""

import numpy as np
import torch

from sae.core.select import Above, BatchTopK, TopK


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


def usual(draw, n=20, d_in=70, d_sae=150):
    weight = draw.normal(d_sae, d_in) / d_in**0.5
    latents = torch.from_numpy(draw.random.integers(0, d_sae, (n, 4)))
    x = weight[latents].sum(1) + 0.2 * draw.normal(n, d_in) / d_in**0.5
    return x, weight, 0.1 * draw.normal(d_sae) - 0.1
