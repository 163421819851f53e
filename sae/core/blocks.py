"""How sure figures of a reconstruction are: its sums, kept for blocks of neighbouring rows.

Rows of one text are alike, so an interval that took each row for a draw of its own would be far
too narrow. Blocks of a few sequences are about independent, and are what is drawn again.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.core import Vectors
from sae.core.bootstrap import Interval, bootstrap_ratio
from sae.core.fidelity import ReconstructionStatistics

ROWS_IN_BLOCK = 256
"""Two sequences of the usual length. Where batches begin and end makes no difference."""


class BlockStatistics(ReconstructionStatistics):
    """Figures streamed over batches, and the intervals of those that are means or shares."""

    def __init__(self, d_in: int, d_sae: int) -> None:
        super().__init__(d_in, d_sae)
        self._sums: dict[int, Float[Tensor, " d_in"]] = {}
        self._totals_of: dict[int, Float[Tensor, " figure"]] = {}

    def add(
        self,
        x: Vectors,
        x_hat: Vectors,
        fired: Int[Tensor, " d_sae"],
        n_active: Int[Tensor, " n"],
        l1: float,
    ) -> None:
        first = self.n_rows
        super().add(x, x_hat, fired, n_active, l1)
        at = 0
        while at < len(x):
            block, used = divmod(first + at, ROWS_IN_BLOCK)
            rows = slice(at, at + ROWS_IN_BLOCK - used)
            here, error = x[rows].double(), (x[rows].double() - x_hat[rows].double())
            totals = torch.stack(
                [
                    here.new_tensor(float(len(here))),
                    here.square().sum(),
                    error.square().sum(),
                    n_active[rows].sum().double(),
                ]
            ).cpu()
            self._sums[block] = self._sums.get(block, 0) + here.sum(0).cpu()
            self._totals_of[block] = self._totals_of.get(block, 0) + totals
            at = rows.stop

    def intervals(self) -> dict[str, Interval]:
        """Return figures with their 95% intervals, by the keys of `metrics`."""
        # A last block of a few rows counts for as much as it holds.
        n, squares, errors, active = torch.stack(list(self._totals_of.values())).t()
        sums = torch.stack(list(self._sums.values()))
        mean = sums.sum(0) / n.sum()
        spread = squares - 2 * sums @ mean + n * mean.square().sum()
        found = {"l0": bootstrap_ratio(active, n), "mse": bootstrap_ratio(errors, n)}
        if float(spread.sum()) > 0:
            lost = bootstrap_ratio(errors, spread)
            found["explained_variance"] = Interval(1 - lost.mean, 1 - lost.high, 1 - lost.low)
        return found
