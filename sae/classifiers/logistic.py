"""Logistic regression with a penalty on squared weights, chosen by validation.

The loss is scikit-learn's: C · Σ log(1 + exp(−s·f)) + ½‖w‖² with f = w·x + b, s = ±1, and b
free. Inputs are standardised first, by the mean and standard deviation of training rows, and
weights are told in the raw inputs' unit. Columns that share one unit and are mostly 0, such as
features, keep their proportions (`per_column=False`): a feature that is active in one row alone
would otherwise weigh as much as any.

Few rows are fitted by Newton's method in their row space, all folds at once
(`sae.classifiers.newton`). More rows go through scikit-learn's L-BFGS, one BLAS thread each:
two that wait for each other were measured to be 50 times as slow.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae.classifiers.newton import RowProblems, newton, newton_path
from sae.classifiers.scores import aucs_of

Rows = NDArray[np.float64]
"""Rows of inputs, (row, d)."""
Labels = NDArray[np.bool_]
"""Whether each row is of the second class, (row,)."""

PENALTIES = tuple(float(c) for c in np.logspace(5, -5, 10))
"""The ten C that are tried, the weakest penalty first, as `sae-probes` 0.4.2 has them."""
_NEWTON_ROWS = 256
"""Up to so many rows a Newton step's n³ is cheaper than L-BFGS."""
_CHEAP_ROWS = 32
"""Up to so many rows a step's cost is that of its calls."""
_MOST = 1e4
"""Iterations of L-BFGS, which stops far earlier but where classes are apart."""


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """A linear classifier of raw inputs: the second class where w·x + b is above 0."""

    weights: NDArray[np.float64]
    """w in the inputs' unit, (d,)."""
    bias: float
    penalty: float | None = None
    """C of its fit; None where nothing was fitted but means."""
    validation_auc: float | None = None
    """AUC by which C was chosen; None where there was nothing to choose."""

    def logits(self, rows: Rows) -> NDArray[np.float64]:
        """Return w·x + b of each row, (row,): log-odds, where it is a logistic regression."""
        found: NDArray[np.float64] = rows @ self.weights + self.bias
        return found


def one_thread() -> AbstractContextManager[Any]:
    """Keep linear algebra to one thread, for as long as small fits go on."""
    limited: AbstractContextManager[Any] = _controller().limit(limits=1)
    return limited


@cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@dataclass(frozen=True, slots=True)
class Standard:
    """Mean and standard deviation of each column; columns that never vary are left as long."""

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def of(cls, rows: Rows, per_column: bool = True) -> "Standard":
        """Return those of rows (row, d); all columns may share one spread."""
        mean, scale = rows.mean(0), rows.std(0)
        if not per_column:
            scale = np.full_like(mean, np.sqrt(np.square(scale).mean()))
        # Of equal values rounding leaves a spread of their last digit.
        return cls(mean, np.where(scale > 1e-12 * np.abs(mean), scale, 1.0))

    def __call__(self, rows: Rows) -> Rows:
        """Return rows less the mean of each column, over its standard deviation."""
        return (rows - self.mean) / self.scale

    def raw(self, weights: NDArray[np.float64], bias: float) -> LinearProbe:
        """Return the probe of raw inputs that has these weights on standardised ones."""
        own = weights / self.scale
        return LinearProbe(own, float(bias - own @ self.mean))


def fit_logistic_path(
    rows: Rows,
    labels: Labels,
    seed: int = 0,
    penalties: Sequence[float] = PENALTIES,
    *,
    per_column: bool = True,
) -> LinearProbe:
    """Return the logistic regression whose C has the highest mean AUC on validation rows.

    As in `sae-probes`: every pair is left out once up to 12 rows, there are six folds under
    128, and else one hold-out of a fifth, 100 rows at most. Parts without both classes are left
    out. With three rows or fewer, or no part left, C is 1. Of C with equal AUCs that with the
    lowest log-loss on validation rows wins, as AUC says nothing of the intercept. All training
    rows give the standardisation, which knows no labels.

    Raises:
        ValueError: if only one class occurs.
    """
    return fit_logistic_paths([rows], labels, seed, penalties, per_column=per_column)[0]


def fit_logistic_paths(
    many: Sequence[Rows],
    labels: Labels,
    seed: int = 0,
    penalties: Sequence[float] = PENALTIES,
    *,
    per_column: bool = True,
) -> list[LinearProbe]:
    """Return `fit_logistic_path` of several readings of the same texts, in less time together.

    Raises:
        ValueError: if only one class occurs.
    """
    _check(labels)
    parts = [*_parts(labels, seed)]
    with one_thread():
        standards = [Standard.of(rows, per_column) for rows in many]
        if not parts:
            return _finished(standards, many, labels, [1.0] * len(many))
        xs = [to(rows) for to, rows in zip(standards, many, strict=True)]
        every = [(x[fit], labels[fit]) for x in xs for fit, _ in parts]
        paths = iter(fitted_paths(every, penalties))
        chosen, reached = list[float](), list[float]()
        for x in xs:
            judged = [
                _judged(weights @ x[held].T + biases[:, None], labels[held])
                for (_, held), (weights, biases) in zip(parts, paths, strict=False)
            ]
            aucs, losses = np.mean(judged, axis=0)
            best = max(range(len(penalties)), key=lambda i: (round(aucs[i], 12), -losses[i]))
            chosen.append(penalties[best])
            reached.append(float(aucs[best]))
        found = _finished(standards, many, labels, chosen)
    return [replace(one, validation_auc=auc) for one, auc in zip(found, reached, strict=True)]


def difference_of_means(rows: Rows, labels: Labels) -> LinearProbe:
    """Return the direction from one class's mean to the other's, with 0 halfway between them.

    Raises:
        ValueError: if only one class occurs.
    """
    _check(labels)
    second, first = rows[labels].mean(0), rows[~labels].mean(0)
    weights = second - first
    return LinearProbe(weights, float(-weights @ (second + first) / 2))


def _check(labels: Labels) -> None:
    if labels.all() or not labels.any():
        raise ValueError("rows of one class alone cannot be told apart")


def _finished(
    standards: Sequence[Standard],
    many: Sequence[Rows],
    labels: Labels,
    penalties: Sequence[float],
) -> list[LinearProbe]:
    """Return the probes of raw inputs that all rows give, with C of each."""
    parts = [(to(rows), labels) for to, rows in zip(standards, many, strict=True)]
    return [
        replace(to.raw(weights, bias), penalty=penalty)
        for to, (weights, bias), penalty in zip(
            standards, fitted_each(parts, penalties), penalties, strict=True
        )
    ]


def fitted_each(
    parts: Sequence[tuple[Rows, Labels]], penalties: Sequence[float]
) -> list[tuple[NDArray[np.float64], float]]:
    """Fit a logistic regression to each of several parts of standardised rows, with its C.

    Returns:
        Weights (d,) and intercept of each part.
    """
    found: list[Any] = [None] * len(parts)
    for members in _alike([len(x) for x, _ in parts]):
        if len(parts[members[0]][0]) <= _NEWTON_ROWS:
            costs = np.array([penalties[i] for i in members])
            at = newton(RowProblems.of([parts[i] for i in members]), costs)
            for own, i in enumerate(members):
                x = parts[i][0]
                found[i] = at.a[own, : len(x)] @ x, float(at.b[own])
            continue
        # Several labellings of the same rows follow each other.
        for _, same in groupby(members, lambda i: id(parts[i][0])):
            first, *others = same
            z, back = _coordinates(parts[first][0])
            for i in (first, *others):
                weights, bias = _lbfgs(z, parts[i][1], penalties[i])
                found[i] = (weights if back is None else weights @ back), bias
    return found


def fitted_paths(
    parts: Sequence[tuple[Rows, Labels]], penalties: Sequence[float]
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Fit logistic regressions with each C to each of several parts of rows.

    Returns:
        Weights (C, d) and intercepts (C,) of each part.
    """
    found: list[Any] = [None] * len(parts)
    for members in _alike([len(x) for x, _ in parts]):
        if len(parts[members[0]][0]) > _NEWTON_ROWS:
            for i in members:
                each = fitted_each([parts[i]] * len(penalties), penalties)
                found[i] = np.stack([w for w, _ in each]), np.array([b for _, b in each])
            continue
        a, b = newton_path(RowProblems.of([parts[i] for i in members]), penalties)
        for at, i in enumerate(members):
            x = parts[i][0]
            found[i] = a[:, at, : len(x)] @ x, b[:, at]
    return found


def _alike(sizes: Sequence[int]) -> list[list[int]]:
    """Return which parts are solved together: filling up to one size should cost little."""
    groups: list[list[int]] = []
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        most = sizes[groups[-1][0]] if groups else 0
        if groups and (sizes[i] > most / 2 or most <= _CHEAP_ROWS):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _coordinates(x: Rows) -> tuple[Rows, Rows | None]:
    """Return rows for L-BFGS, and what takes weights back: of few rows, their own space."""
    return _row_space(x) if len(x) < x.shape[1] else (x, None)


def _row_space(x: Rows) -> tuple[Rows, Rows]:
    """Return coordinates of rows in the space that they span, and its basis (row, d)."""
    values, vectors = np.linalg.eigh(x @ x.T)
    there = values > 1e-12 * values[-1]
    lengths = np.sqrt(values[there])
    return vectors[:, there] * lengths, (vectors[:, there] / lengths).T @ x


def _lbfgs(x: Rows, labels: Labels, penalty: float) -> tuple[NDArray[np.float64], float]:
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=penalty, tol=1e-5, max_iter=int(_MOST))
    with warnings.catch_warnings():
        # Where classes are apart and C is large, weights grow for as long as one lets them.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, labels)
    return model.coef_[0], float(model.intercept_[0])


_Part = tuple[NDArray[np.intp], NDArray[np.intp]]


def _parts(labels: Labels, seed: int) -> Iterator[_Part]:
    """Yield rows to fit to and rows to validate on, each with both classes."""
    from sklearn.model_selection import LeavePOut, StratifiedKFold

    n = len(labels)
    if n <= 3:
        return
    everything = np.zeros((n, 1))
    if n <= 12:
        found = LeavePOut(2).split(everything)
    elif n < 128:
        folds = min(6, int(labels.sum()), int((~labels).sum()))
        if folds < 2:
            return
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
        found = splitter.split(everything, labels)
    else:
        order = np.random.default_rng(seed).permutation(n)
        n_validation = min(n // 5, 100)
        found = [(order[n_validation:], order[:n_validation])]
    for fit, validation in found:
        if all(0 < labels[rows].sum() < len(rows) for rows in (fit, validation)):
            yield fit, validation


def _judged(logits: NDArray[np.float64], labels: Labels) -> NDArray[np.float64]:
    """Return AUC and log-loss of logits (C, row)."""
    aucs = aucs_of(logits, labels)
    losses = np.logaddexp(0, np.where(labels, -logits, logits)).mean(1)
    return np.stack([aucs, losses])
