"""How well scores tell two classes apart: accuracy and AUC, each with its 95% interval."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae.core.bootstrap import Interval

_Z = 1.959963984540054
"""The standard normal's 97.5% quantile."""
_FEW_PAIRS = 50_000


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of a classifier on rows that it was not fitted to."""

    accuracy: Interval
    auc: Interval
    n: int
    """Number of rows."""


def score(logits: NDArray[np.float64], labels: NDArray[np.bool_]) -> Scores:
    """Return accuracy (a logit above 0 says the second class) and AUC of scores (row,).

    Raises:
        ValueError: if only one class occurs, of which there is no AUC.
    """
    right = int(((logits > 0) == labels).sum())
    n, n_positive = len(labels), int(labels.sum())
    auc = auc_of(logits, labels)
    return Scores(wilson(right, n), newcombe(auc, n_positive, n - n_positive), n)


def auc_of(logits: NDArray[np.float64], labels: NDArray[np.bool_]) -> float:
    """Return the share of pairs of both classes that scores put in order; ties count half.

    Raises:
        ValueError: if only one class occurs.
    """
    return float(aucs_of(logits[None], labels)[0])


def aucs_of(logits: NDArray[np.float64], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the AUC of each of several scores (score, row) of the same rows, (score,).

    Raises:
        ValueError: if only one class occurs.
    """
    n_positive = int(labels.sum())
    n_negative = len(labels) - n_positive
    if not n_positive or not n_negative:
        raise ValueError("rows of one class alone have no AUC")
    found: NDArray[np.float64]
    if logits.shape[0] * n_positive * n_negative <= _FEW_PAIRS:
        # Comparing them all takes less time than a call that ranks them.
        high, low = logits[:, labels, None], logits[:, None, ~labels]
        found = ((high > low).mean((1, 2)) + (high >= low).mean((1, 2))) / 2
        return found
    from scipy.stats import rankdata

    above = rankdata(logits, axis=1)[:, labels].sum(1) - n_positive * (n_positive + 1) / 2
    found = above / (n_positive * n_negative)
    return found


def wilson(right: int, n: int) -> Interval:
    """Return a share with Wilson's interval (1927), which holds at 0 and 1 as well."""
    share, square = right / n, _Z * _Z / n
    middle = (share + square / 2) / (1 + square)
    half = _Z / (1 + square) * math.sqrt(share * (1 - share) / n + square / n / 4)
    return Interval(share, min(share, max(0.0, middle - half)), max(share, middle + half))


def newcombe(auc: float, n_positive: int, n_negative: int) -> Interval:
    """Return an AUC with its interval by Newcombe's method 5.

    Its ends are the AUCs A at which |A − AUC| is 1.96 standard errors of Hanley and McNeil
    (1982), with both classes' numbers in the correction replaced by their mean, less one
    (Newcombe 2006, "Confidence intervals for an effect size measure based on the Mann–Whitney
    statistic. Part 2"). Unlike DeLong's it is no single point where classes are apart.
    """
    from scipy.optimize import brentq

    fewer = (n_positive + n_negative) / 2 - 1

    def excess(a: float) -> float:
        spread = 1 + fewer * (1 - a) / (2 - a) + fewer * a / (1 + a)
        return (a - auc) ** 2 - _Z * _Z * a * (1 - a) * spread / (n_positive * n_negative)

    # At 0 and 1 themselves there is no spread, so that they are roots without a meaning.
    low = 0.0 if auc <= 0 else float(brentq(excess, 0.0, min(auc, 1 - 1e-9)))
    high = 1.0 if auc >= 1 else float(brentq(excess, max(auc, 1e-9), 1.0))
    return Interval(auc, low, high)
