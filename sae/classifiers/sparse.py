"""k-sparse probing: a logistic regression on the few features that differ most.

As in Gurnee et al. 2023, "Finding Neurons in a Haystack", and `sae-probes`: the k features with
the largest difference between both classes' means.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae.classifiers.logistic import Labels, LinearProbe, Rows, fit_logistic_path


@dataclass(frozen=True, slots=True)
class SparseProbe:
    """A linear probe of some columns."""

    columns: NDArray[np.intp]
    """Columns that the probe reads, shape (k,), those whose means differ most first."""
    probe: LinearProbe
    """The probe of these columns, in the same order."""

    def logits(self, rows: Rows) -> NDArray[np.float64]:
        """Return w·x + b of each row (row, d)."""
        return self.probe.logits(rows[:, self.columns])


def most_different(rows: Rows, labels: Labels, k: int) -> NDArray[np.intp]:
    """Return the k columns whose means differ most between classes, the most different first.

    Only training rows may be given: chosen with test rows, noise looks like knowledge.
    """
    difference = np.abs(rows[labels].mean(0) - rows[~labels].mean(0))
    return np.argsort(-difference, kind="stable")[:k]


def fit_sparse(
    rows: Rows, labels: Labels, k: int | None, seed: int = 0, *, per_column: bool = True
) -> SparseProbe:
    """Return the probe on the k most different columns of training rows; None is all of them.

    Raises:
        ValueError: if only one class occurs.
    """
    width = rows.shape[1]
    every = k is None or k >= width
    columns = np.arange(width) if every else most_different(rows, labels, k or 0)
    chosen = rows[:, columns]
    return SparseProbe(columns, fit_logistic_path(chosen, labels, seed, per_column=per_column))
