"""Which latents are active on a batch: the encoder's product and the choice, block by block.

The pre-activations of a whole batch (batch, d_sae) are the largest tensor of a dense step. Here
the product is computed for a block of rows at a time, into memory that is used again, and
only the entries that a selection keeps outlive their block.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.core import cpu_kernels
from sae.core.sparse import Support, products_at, support_of

# On two cores, d_in 576: 32 MB stay in the last cache until they are read, and rows fewer
# than 512 cost the product a tenth of its speed.
BLOCK_BYTES = 32 << 20
MIN_BLOCK_ROWS = 512


class Active(NamedTuple):
    """The entries that a selection kept, and their pre-activations (in row order)."""

    support: Support
    values: Float[Tensor, " nnz"]


class _Entries(NamedTuple):
    counts: Int[Tensor, " rows"]
    columns: Int[Tensor, " nnz"]
    values: Float[Tensor, " nnz"]


class Selection(ABC):
    """Collects the entries that it keeps of each block of rows."""

    def __init__(self) -> None:
        self._parts: list[_Entries] = []

    def add(self, products: Float[Tensor, "rows d_sae"], bias: Float[Tensor, " d_sae"]) -> None:
        """Look at the next block of rows, which is overwritten afterwards."""
        self._parts.append(self.choose(products, bias))

    @abstractmethod
    def choose(
        self, products: Float[Tensor, "rows d_sae"], bias: Float[Tensor, " d_sae"]
    ) -> _Entries:
        """The entries of `products + bias`, of one block of rows, to keep."""

    def finish(self, d_sae: int) -> Active | None:
        """All that was kept; None if every block has to be seen once more."""
        found = _Entries(*(torch.cat(parts) for parts in zip(*self._parts, strict=True)))
        self._parts = []
        return Active(support_of(found.counts, found.columns, d_sae), found.values)


class Above(Selection):
    """Entries above the bound of their latent."""

    def __init__(self, bound: Float[Tensor, " d_sae"]) -> None:
        super().__init__()
        self.bound = bound

    def choose(
        self, products: Float[Tensor, "rows d_sae"], bias: Float[Tensor, " d_sae"]
    ) -> _Entries:
        return _above(products, bias, self.bound)


class TopK(Selection):
    """The `k` largest positive entries of each row, fewer where fewer are positive."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def choose(
        self, products: Float[Tensor, "rows d_sae"], bias: Float[Tensor, " d_sae"]
    ) -> _Entries:
        return _top_k(products, bias, self.k)


class TopKAmong(Selection):
    """The `k` largest entries of each row among some latents, whatever their sign."""

    def __init__(self, latents: Int[Tensor, " some"], k: int) -> None:
        super().__init__()
        self.latents = latents
        self.k = min(k, len(latents))

    def choose(
        self, products: Float[Tensor, "rows d_sae"], bias: Float[Tensor, " d_sae"]
    ) -> _Entries:
        pre_acts = products[:, self.latents] + bias[self.latents]
        values, places = pre_acts.topk(self.k, sorted=False)
        places, order = places.sort(1)
        counts = torch.full((len(values),), self.k, device=values.device)
        columns = self.latents[places].int().flatten()
        return _Entries(counts, columns, values.gather(1, order).flatten())


class BatchTopK(Selection):
    """The `k · rows` largest positive entries of all rows together.

    A sample of the first block gives a guess at the least of them. What exceeds the guess is
    collected; if that is enough, it holds the answer, and otherwise all rows are seen once
    more with no guess. Of equal entries the first are taken.
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        self.guess: float | None = None

    def choose(
        self, products: Float[Tensor, "rows d_sae"], bias: Float[Tensor, " d_sae"]
    ) -> _Entries:
        if self.guess is None:
            self.guess = self._careful_guess(products, bias)
        return _above(products, bias, torch.full_like(bias, self.guess))

    def _careful_guess(self, products: Tensor, bias: Tensor) -> float:
        sample = (products[::16] + bias).flatten()[::3]
        wanted = int(1.5 * self.k * len(sample) / len(bias)) + 16
        if wanted >= len(sample):
            return 0.0
        return max(0.0, float(sample.topk(wanted, sorted=False).values.amin()))

    def finish(self, d_sae: int) -> Active | None:
        found = _Entries(*(torch.cat(parts) for parts in zip(*self._parts, strict=True)))
        self._parts = []
        wanted = self.k * len(found.counts)
        if len(found.values) < wanted and self.guess:
            self.guess = 0.0
            return None
        if len(found.values) > wanted:
            found = _largest(found, wanted)
        return Active(support_of(found.counts, found.columns, d_sae), found.values)


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
        return _Entries(
            counts, *triton_kernels.fill_above(pre_acts, bound, ends, int(ends[-1]))
        )
    counts = cpu_kernels.count_above(products, bias, bound)
    return _Entries(counts, *cpu_kernels.fill_above(products, bias, bound, counts))


def _top_k(products: Tensor, bias: Tensor, k: int) -> _Entries:
    if not products.is_cuda:
        return _Entries(*cpu_kernels.top_k_rows(products, bias, k))
    values, columns = (products + bias).topk(k, sorted=False)
    columns, order = columns.sort(1)
    values = values.gather(1, order)
    positive = values > 0
    return _Entries(positive.sum(1), columns.int()[positive], values[positive])


def product_blocks(
    x: Float[Tensor, "batch d_in"],
    weight: Float[Tensor, "d_sae d_in"],
    dtype: torch.dtype | None = None,
) -> Iterator[Float[Tensor, "rows d_sae"]]:
    """`x @ weight.T`, some rows at a time, all in the same memory.

    Without the bias: torch would copy it over the whole block before the product is added,
    which takes a seventh of the product's time.

    Args:
        dtype: of the product's inputs, if not that of `x`.
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


def _exact(active: Active, x: Tensor, weight: Tensor, bias: Tensor) -> Active:
    values = products_at(active.support, x, weight)
    return Active(active.support, values + bias.index_select(0, active.support.columns))


@torch.no_grad()
def select(
    x: Float[Tensor, "batch d_in"],
    weight: Float[Tensor, "d_sae d_in"],
    bias: Float[Tensor, " d_sae"],
    *selections: Selection,
    dtype: torch.dtype | None = None,
) -> list[Active]:
    """Return what each selection keeps of the pre-activations `x @ weight.T + bias`.

    Args:
        dtype: narrower inputs for the product, such as bfloat16. They only decide what is
            active; the values are computed once more where it is, in the type of `x`.
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
                found[selection] = active if dtype is None else _exact(active, x, weight, bias)
                waiting.remove(selection)
    return [found[one] for one in selections]
