"""Which latents are active on a batch of rows, and their pre-activations."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from sae.core import PerLatent, Values, Vectors, Weight
from sae.core.bounds import Entries
from sae.core.screen import chosen, product_blocks
from sae.core.sparse import Support, support_of


class Active(NamedTuple):
    """The entries that a selection kept, and their pre-activations (in row order)."""

    support: Support
    values: Values


@dataclass(frozen=True, slots=True, eq=False)
class Above:
    """Entries above the bound of their latent."""

    bound: PerLatent

    def entries(self, x: Vectors, weight: Weight, bias: PerLatent, matmul: str) -> Entries:
        """Return what is kept of `x @ weight.T + bias`."""
        return chosen(x, weight, bias, self.bound, 0, matmul)


@dataclass(frozen=True, slots=True)
class TopK:
    """The `k` largest positive entries of each row, fewer where fewer are positive.

    Of equal entries those of lower latents are kept.
    """

    k: int

    def entries(self, x: Vectors, weight: Weight, bias: PerLatent, matmul: str) -> Entries:
        """Return what is kept of `x @ weight.T + bias`."""
        k = min(self.k, len(weight))
        return chosen(x, weight, bias, torch.zeros_like(bias), k, matmul)


@dataclass(frozen=True, slots=True)
class BatchTopK:
    """The `k · rows` largest positive entries of all rows together.

    A sample gives a guess at the least of them. What exceeds the guess is collected; if that
    is enough, it holds the answer, and otherwise all rows are seen once more with no guess. Of
    equal entries the first are kept.
    """

    k: int

    def entries(self, x: Vectors, weight: Weight, bias: PerLatent, matmul: str) -> Entries:
        """Return what is kept of `x @ weight.T + bias`."""
        wanted = self.k * len(x)
        for guess in (self._careful_guess(x, weight, bias), 0.0):
            found = Above(torch.full_like(bias, guess)).entries(x, weight, bias, matmul)
            if guess == 0.0 or len(found.values) >= wanted:
                break
        return _largest(found, wanted) if len(found.values) > wanted else found

    def _careful_guess(self, x: Tensor, weight: Tensor, bias: Tensor) -> float:
        # About 256 rows and as many latents, from everywhere.
        x = x[:: max(1, len(x) // 256)]
        some = slice(None, None, max(1, len(weight) // 256))
        sample = torch.addmm(bias[some], x, weight[some].t()).flatten()
        wanted = int(1.5 * self.k * len(sample) / len(bias)) + 16
        if wanted >= len(sample):
            return 0.0
        return max(0.0, float(sample.topk(wanted, sorted=False).values.amin()))


@dataclass(frozen=True, slots=True, eq=False)
class TopKAmong:
    """The `k` largest entries of each row among some latents, whatever their sign."""

    latents: Int[Tensor, " some"]
    k: int

    def entries(self, x: Vectors, weight: Weight, bias: PerLatent, matmul: str) -> Entries:
        """Return what is kept; the product with those latents alone is in the type of `x`."""
        k = min(self.k, len(self.latents))
        counts = torch.full((len(x),), k, device=x.device)
        columns, kept = [], []
        for products in product_blocks(x, weight[self.latents]):
            values, places = (products + bias[self.latents]).topk(k, sorted=False)
            places, order = places.sort(1)
            columns.append(self.latents[places].int().flatten())
            kept.append(values.gather(1, order).flatten())
        return Entries(counts, torch.cat(columns), torch.cat(kept))


Selection = Above | TopK | BatchTopK | TopKAmong


def _largest(found: Entries, n: int) -> Entries:
    """Return the `n` largest entries, the first among equals."""
    least = found.values.topk(n, sorted=False).values.amin()
    keep = found.values > least
    ties = (found.values == least).nonzero()[:, 0]
    keep[ties[: n - keep.sum()]] = True
    before = torch.zeros(len(keep) + 1, dtype=torch.int64, device=keep.device)
    before[1:] = keep.cumsum(0)
    ends = found.counts.cumsum(0)
    counts = before[ends] - before[ends - found.counts]
    return Entries(counts, found.columns[keep], found.values[keep], found.candidates)


def select(
    x: Vectors,
    weight: Weight,
    bias: PerLatent,
    selection: Selection,
    matmul: str = "auto",
) -> Active:
    """Return what the selection keeps of the pre-activations `x @ weight.T + bias`.

    `matmul` is the product that finds the entries, one of `screen.MATMULS`; whichever it is,
    the same entries are kept, with the same values.
    """
    return select_and_count(x, weight, bias, selection, matmul)[0]


@torch.no_grad()
def select_and_count(
    x: Vectors, weight: Weight, bias: PerLatent, selection: Selection, matmul: str
) -> tuple[Active, float]:
    """Return what `select` does, and how many entries of a row the product left open."""
    x, weight, bias = x.detach(), weight.detach(), bias.detach()
    found = selection.entries(x, weight, bias, matmul)
    support = support_of(found.counts, found.columns, len(weight))
    return Active(support, found.values), found.candidates / max(1, len(x))
