"""How many bits it takes to write rows down, by a code that was learned on other rows.

MDL-SAE (Ayonrinde and others 2024, arXiv 2410.11179) asks of a dictionary how short its account
of the activations is. An entry of a row is either silent or falls into a bin of its column, and
the code spends `−log₂ p` on what has probability p, so that its mean is
`Σⱼ [H(pⱼ) + pⱼ · H(bin | j is active)]` where the probabilities are right. They are those of
rows that the code was learned on; on others it is longer, as any real code would be.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.core import Indices

_POOLED = 16.0
"""Counts that the bins of all columns together weigh, where a column has few of its own."""

Bits = Float[Tensor, " entry"]


@dataclass(frozen=True, slots=True)
class EntryCode:
    """Bits of rows whose active entries fall into bins; float64."""

    silent: float
    """Bits of a row without any active entry."""
    active: Float[Tensor, " column"]
    """Bits that an active entry of a column adds for being active; below 0 where most are."""
    bins: Float[Tensor, "column bin"]
    """Bits of an active entry's bin."""

    def bits(self, columns: Indices, bins: Indices) -> Bits:
        """Return what each active entry adds to the bits of its row, float64."""
        columns = columns.long()
        found: Bits = self.active[columns] + self.bins[columns, bins]
        return found


class EntryCounts:
    """How often each column was active, and in which bin, streamed over rows."""

    def __init__(self, n_columns: int, n_bins: int) -> None:
        self.n_rows = 0
        self._counts = torch.zeros(n_columns, n_bins, dtype=torch.int64)

    def add(self, n_rows: int, columns: Indices, bins: Indices) -> None:
        """Count the active entries of some rows."""
        n_columns, n_bins = self._counts.shape
        places = columns.long() * n_bins + bins
        found = torch.bincount(places, minlength=n_columns * n_bins)
        self._counts += found.view(n_columns, n_bins)
        self.n_rows += n_rows

    def code(self) -> EntryCode:
        """Return the code of these rows.

        A column's share of active rows is counted with half a row more on either side
        (Krichevsky and Trofimov 1981), so that nothing is impossible. Its bins are counted with
        those of all columns beside them, which say most where it was hardly ever active.
        """
        counts = self._counts.double()
        n = counts.sum(1)
        p = (n + 0.5) / (self.n_rows + 1)
        all_bins = counts.sum(0) + 0.5
        prior = _POOLED * all_bins / all_bins.sum()
        bins = (counts + prior) / (n + _POOLED)[:, None]
        silent = -torch.log2(1 - p)
        return EntryCode(float(silent.sum()), -torch.log2(p) - silent, -torch.log2(bins))


def index_bits(n_active: Int[Tensor, " row"], n_columns: int) -> Bits:
    """Return the bits that say which entries of a row are active, given how many: log₂ C(n, k).

    All choices are equally likely to this code, as if no feature were more frequent than
    another: what `Σ H(pⱼ)` saves of it is what frequencies tell.
    """
    k = n_active.double()
    chosen = math.lgamma(n_columns + 1) - torch.lgamma(k + 1) - torch.lgamma(n_columns - k + 1)
    found: Bits = chosen / math.log(2)
    return found
