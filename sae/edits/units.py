"""Sizes of edits in all units, so that a strength means something.

Raw numbers of 10, 50 and 400 are all usual somewhere: what a size amounts to depends on the
dictionary, the feature and the hook.
"""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor

from sae.base import UserError
from sae.edits.library import Measured, Named
from sae.edits.record import quantile_of


@dataclass(frozen=True, slots=True)
class Scale:
    """What sizes along one direction are worth."""

    what: str
    """Says what is measured, such as `feature 412 of runs/demo/dictionaries/mine`."""
    vector: Float[Tensor, " d"]
    """What raw 1 adds to activations."""
    find_rows: Callable[[], Measured | str]
    """Finds activations at the hook, or says why there are none."""
    named: Named | None = None
    """The dictionary of a feature whose codes are meant; None of a projection."""
    feature: int = 0

    def raw(self, by: float, unit: str) -> float:
        """Return a size in raw units.

        Raises:
            UserError: if the unit is not measurable here.
        """
        worth = 1.0 if unit == "raw" else self._worth(unit)
        if isinstance(worth, str):
            raise UserError(f"unit={unit} of {self.what} is not known: {worth}")
        return by * worth

    def sizes(self, raw: float) -> dict[str, float | str]:
        """Return a raw size in every unit, or why it is unknown there.

        `quantile` is the share of the feature's positive codes that are no larger.
        """
        found: dict[str, float | str] = {"raw": raw}
        for unit in ("max_act", "std", "residual_norm"):
            if unit == "max_act" and self.named is None:
                continue
            worth = self._worth(unit)
            found[unit] = worth if isinstance(worth, str) else raw / worth
        if self.named is not None:
            found["quantile"] = self._share(raw)
        return found

    def _worth(self, unit: str) -> float | str:
        """Return what one of a unit is in raw, or why that is unknown."""
        if unit == "max_act":
            return self._live()
        if (q := quantile_of(unit)) is not None:
            return self._quantile(q)
        rows = self.find_rows()
        if isinstance(rows, str):
            return rows
        length = float(torch.linalg.vector_norm(self.vector.double()))
        if length == 0:
            return "its direction is zero"
        if unit == "residual_norm":
            return rows.median_norm / length
        w = self.vector.double().cpu() / length
        return float((w @ rows.covariance @ w).clamp_min(0).sqrt()) / length

    def _live(self) -> float | str:
        """Return the highest code of the feature, or why it is unknown."""
        if self.named is None:
            return "it is no code of a feature"
        highest = self.named.highest
        if isinstance(highest, str):
            return highest
        if highest[self.feature] <= 0:
            return "the feature is dead: it fired nowhere in the text of its atlas"
        return highest[self.feature]

    def _counts(self) -> Sequence[int] | str:
        """Return the codes counted in equal bins of (0, highest], or why that is unknown."""
        found = "" if self.named is None else self.named.histograms
        return found if isinstance(found, str) else found[self.feature]

    def _quantile(self, q: float) -> float | str:
        """Return a quantile of the positive codes, taken as spread evenly inside each bin."""
        highest, counts = self._live(), self._counts()
        if isinstance(highest, str) or isinstance(counts, str):
            return highest if isinstance(highest, str) else str(counts)
        ends = [*accumulate(counts)]
        at = q * ends[-1]
        i = bisect.bisect_left(ends, at)
        inside = (at - (ends[i] - counts[i])) / counts[i]
        return highest * (i + inside) / len(counts)

    def _share(self, raw: float) -> float | str:
        highest, counts = self._live(), self._counts()
        if isinstance(highest, str) or isinstance(counts, str):
            return highest if isinstance(highest, str) else str(counts)
        place = min(max(raw / highest, 0.0), 1.0) * len(counts)
        i = min(int(place), len(counts) - 1)
        return (sum(counts[:i]) + (place - i) * counts[i]) / max(1, sum(counts))
