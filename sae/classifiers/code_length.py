"""How many bits labels cost if a probe predicts them: the online, or prequential, code.

Labels are sent in blocks, each with the probabilities of a probe that was fitted to the blocks
before it (Voita and Titov 2020, "Information-Theoretic Probing with Minimum Description
Length", equation 4): L = t₁ log₂ K − Σᵢ log₂ p_θᵢ(block i+1). A representation that makes
labels easy to learn gives a short code; noise costs a bit a label.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sae.classifiers.logistic import (
    PENALTIES,
    Labels,
    Rows,
    Standard,
    fitted_paths,
    one_thread,
)

_PERCENTS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.25, 12.5, 25, 50, 100)
"""Where blocks end, in percent of all rows: the paper's."""


@dataclass(frozen=True, slots=True)
class CodeLength:
    """The length of a code for labels."""

    bits: float
    n: int
    """Number of labels, which cost as many bits without any knowledge."""

    @property
    def compression(self) -> float:
        """Return how many times shorter the code is than one bit a label; about 1 for noise."""
        return self.n / self.bits


def online_code_lengths(
    many: Sequence[Rows],
    labels: Labels,
    penalties: Sequence[float] = PENALTIES,
    *,
    per_column: bool = True,
) -> list[CodeLength]:
    """Return the length of the online code of labels in their order, which should be random.

    The code is written with each C, and the shortest one counts, with the log₂ of their number
    of bits that it takes to say which. Blocks before which only one class was seen get
    Laplace's rule, (seen + 1) / (all + 2).

    Args:
        many: rows (row, d) of several readings of the same texts, which takes less time than
            one by one.
    """
    n = len(labels)
    ends = sorted({math.ceil(n * percent / 100) for percent in _PERCENTS})
    totals = np.full((len(many), len(penalties)), float(ends[0]))
    parts, coming = list[tuple[Rows, Labels]](), list[tuple[int, Rows, Labels]]()
    with one_thread():
        for seen, end in pairwise(ends):
            known, truth = labels[:seen], labels[seen:end]
            if known.all() or not known.any():
                totals += _laplace(known, truth)
                continue
            for i, rows in enumerate(many):
                standard = Standard.of(rows[:seen], per_column)
                parts.append((standard(rows[:seen]), known))
                coming.append((i, standard(rows[seen:end]), truth))
        paths = fitted_paths(parts, penalties)
    for (weights, biases), (i, x, truth) in zip(paths, coming, strict=True):
        logits = weights @ x.T + biases[:, None]
        nats = np.logaddexp(0, np.where(truth, -logits, logits)).sum(1)
        totals[i] += nats / math.log(2)
    choice = math.log2(len(penalties))
    return [CodeLength(float(total.min()) + choice, n) for total in totals]


def _laplace(known: Labels, coming: Labels) -> float:
    """Return what a block costs where one class alone was seen before it."""
    p = (int(known.sum()) + 1) / (len(known) + 2)
    return float(-np.where(coming, math.log2(p), math.log2(1 - p)).sum())
