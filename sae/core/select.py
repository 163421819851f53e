"""Which latents are active on a batch: the encoder's product and the choice, block by block.

All pre-activations would be the largest tensor of a step. Blocks of rows share their memory,
and only the entries that a selection keeps outlive their block.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from sae.core import Indices, Latents, PerLatent, PerRow, Values, Vectors, Weight, cpu_kernels
from sae.core.sparse import Support, products_at, support_of

# On two cores, d_in 576: 32 MB stay in the last cache until they are read, and rows fewer
# than 512 cost the product a tenth of its speed.
BLOCK_BYTES = 32 << 20
MIN_BLOCK_ROWS = 512


class Active(NamedTuple):
    """The entries that a selection kept, and their pre-activations (in row order)."""

    support: Support
    values: Values


class _Entries(NamedTuple):
    counts: PerRow
    columns: Indices
    values: Values


@dataclass(eq=False)
class Selection(ABC):
    """Collects the entries that it keeps of each block of rows."""

    _parts: list[_Entries] = field(default_factory=list, init=False, repr=False)

    def add(self, products: Latents, bias: PerLatent) -> None:
        """Look at the next block of rows, which is overwritten afterwards."""
        self._parts.append(self._choose(products, bias))

    @abstractmethod
    def _choose(self, products: Tensor, bias: Tensor) -> _Entries:
        """Return the entries of `products + bias`, of one block of rows, to keep."""

    def _among_all(self, found: _Entries) -> _Entries | None:
        """Choose once more among what was kept of all blocks."""
        return found

    def finish(self, d_sae: int) -> Active | None:
        """Return all that was kept; None if every block has to be seen once more."""
        parts, self._parts = self._parts, []
        found = self._among_all(_Entries(*(map(torch.cat, zip(*parts, strict=True)))))
        if found is None:
            return None
        return Active(support_of(found.counts, found.columns, d_sae), found.values)


@dataclass(eq=False)
class Above(Selection):
    """Entries above the bound of their latent."""

    bound: PerLatent

    def _choose(self, products: Tensor, bias: Tensor) -> _Entries:
        return _above(products, bias, self.bound)


@dataclass(eq=False)
class TopK(Selection):
    """The `k` largest positive entries of each row, fewer where fewer are positive."""

    k: int

    def _choose(self, products: Tensor, bias: Tensor) -> _Entries:
        if not products.is_cuda:
            return _Entries(*cpu_kernels.top_k_rows(products, bias, self.k))
        values, columns = (products + bias).topk(self.k, sorted=False)
        columns, order = columns.sort(1)
        values = values.gather(1, order)
        positive = values > 0
        return _Entries(positive.sum(1), columns.int()[positive], values[positive])


@dataclass(eq=False)
class TopKAmong(Selection):
    """The `k` largest entries of each row among some latents, whatever their sign."""

    latents: Int[Tensor, " some"]
    k: int

    def _choose(self, products: Tensor, bias: Tensor) -> _Entries:
        pre_acts = products[:, self.latents] + bias[self.latents]
        k = min(self.k, len(self.latents))
        values, places = pre_acts.topk(k, sorted=False)
        places, order = places.sort(1)
        counts = torch.full((len(values),), k, device=values.device)
        columns = self.latents[places].int().flatten()
        return _Entries(counts, columns, values.gather(1, order).flatten())


@dataclass(eq=False)
class BatchTopK(Selection):
    """The `k · rows` largest positive entries of all rows together.

    A sample of the first block gives a guess at the least of them. What exceeds the guess is
    collected; if that is enough, it holds the answer, and otherwise all rows are seen once
    more with no guess. Of equal entries the first are taken.
    """

    k: int
    guess: float | None = None

    def _choose(self, products: Tensor, bias: Tensor) -> _Entries:
        if self.guess is None:
            self.guess = self._careful_guess(products, bias)
        return _above(products, bias, torch.full_like(bias, self.guess))

    def _careful_guess(self, products: Tensor, bias: Tensor) -> float:
        sample = (products[::16] + bias).flatten()[::3]
        wanted = int(1.5 * self.k * len(sample) / len(bias)) + 16
        if wanted >= len(sample):
            return 0.0
        return max(0.0, float(sample.topk(wanted, sorted=False).values.amin()))

    def _among_all(self, found: _Entries) -> _Entries | None:
        wanted = self.k * len(found.counts)
        if len(found.values) < wanted and self.guess:
            self.guess = 0.0
            return None
        return _largest(found, wanted) if len(found.values) > wanted else found


def _largest(found: _Entries, n: int) -> _Entries:
    """The `n` largest entries, the first among equals."""
    least = found.values.topk(n, sorted=False).values.amin()
    keep = found.values > least
    ties = (found.values == least).nonzero()[:, 0]
    keep[ties[: n - keep.sum()]] = True
    before = torch.zeros(len(keep) + 1, dtype=torch.int64, device=keep.device)
    before[1:] = keep.cumsum(0)
    ends = found.counts.cumsum(0)
    counts = before[ends] - before[ends - found.counts]
    return _Entries(counts, found.columns[keep], found.values[keep])


def _above(products: Tensor, bias: Tensor, bound: Tensor) -> _Entries:
    if products.is_cuda:
        from sae.core import triton_kernels

        pre_acts = products + bias
        counts = triton_kernels.count_above(pre_acts, bound).long()
        ends = torch.zeros(len(counts) + 1, dtype=torch.int32, device=counts.device)
        ends[1:] = counts.cumsum(0)
        entries = triton_kernels.fill_above(pre_acts, bound, ends, int(ends[-1]))
        return _Entries(counts, *entries)
    counts = cpu_kernels.count_above(products, bias, bound)
    return _Entries(counts, *cpu_kernels.fill_above(products, bias, bound, counts))


def product_blocks(
    x: Vectors, weight: Weight, dtype: torch.dtype | None = None
) -> Iterator[Latents]:
    """Give `x @ weight.T`, some rows at a time, all in the same memory, from inputs of `dtype`.

    Without the bias: torch would copy it over the whole block before the product is added,
    which takes a seventh of the product's time.
    """
    d_sae = len(weight)
    rows = max(MIN_BLOCK_ROWS, BLOCK_BYTES // (d_sae * x.element_size()))
    block = x.new_empty(min(rows, len(x)), d_sae)
    narrow = dtype not in (None, x.dtype)
    if narrow:
        weight = weight.to(dtype)
    for part in torch.split(x, len(block)):
        out = block[: len(part)]
        if narrow:
            out.copy_(part.to(dtype) @ weight.t())
        else:
            torch.mm(part, weight.t(), out=out)
        yield out


@torch.no_grad()
def select(
    x: Vectors,
    weight: Weight,
    bias: PerLatent,
    *selections: Selection,
    dtype: torch.dtype | None = None,
) -> list[Active]:
    """Return what each selection keeps of the pre-activations `x @ weight.T + bias`.

    Inputs of a narrower `dtype`, such as bfloat16, only decide what is active; the values are
    computed once more where it is, in the type of `x`.
    """
    x, weight, bias = x.detach(), weight.detach(), bias.detach()
    waiting = list(selections)
    found: dict[Selection, Active] = {}
    while waiting:
        for block in product_blocks(x, weight, dtype):
            for selection in waiting:
                selection.add(block, bias)
        for selection in tuple(waiting):
            active = selection.finish(len(weight))
            if active is not None:
                if dtype is not None:
                    support, _ = active
                    exact = products_at(support, x, weight)
                    active = Active(support, exact + bias.index_select(0, support.columns))
                found[selection] = active
                waiting.remove(selection)
    return [found[one] for one in selections]
