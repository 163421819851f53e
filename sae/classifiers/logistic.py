"""Logistic regression with a penalty on squared weights, chosen by validation.

The loss is scikit-learn's: C · Σ log(1 + exp(−s·f)) + ½‖w‖² with f = w·x + b, s = ±1, and b
free. Inputs are standardised first, by the mean and standard deviation of training rows, and
weights are told in the raw inputs' unit. Columns that share one unit and are mostly 0, such as
features, keep their proportions (`per_column=False`): a feature that is active in one row alone
would otherwise weigh as much as any.

Few rows are fitted in their row space, where w is a sum of rows and only their products count:
Newton's method there solves all folds and penalties at once (Rasmussen and Williams 2006,
"Gaussian Processes for Machine Learning", algorithm 3.1, with a free intercept), to the optimum
and not to a tolerance of gradients. More rows go through scikit-learn's L-BFGS, one BLAS thread
each: two that wait for each other were measured to be 50 times as slow.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae.classifiers.scores import auc_of

Rows = NDArray[np.float64]
"""Rows of inputs, (row, d)."""
Labels = NDArray[np.bool_]
"""Whether each row is of the second class, (row,)."""

PENALTIES = tuple(float(c) for c in np.logspace(5, -5, 10))
"""The ten C that are tried, the weakest penalty first, as `sae-probes` 0.4.2 has them."""
_NEWTON_ROWS = 256
"""Up to so many rows a Newton step's n³ is cheaper than L-BFGS."""
_STEPS, _HALVINGS, _ENOUGH = 60, 12, 1e-11
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
        """Return standardised rows."""
        return (rows - self.mean) / self.scale

    def raw(self, weights: NDArray[np.float64], bias: float) -> LinearProbe:
        """Return the probe of raw inputs that has these weights on standardised ones."""
        own = weights / self.scale
        return LinearProbe(own, float(bias - own @ self.mean))


def fit_logistic(
    rows: Rows, labels: Labels, penalty: float, *, per_column: bool = True
) -> LinearProbe:
    """Return the logistic regression of one C.

    Raises:
        ValueError: if only one class occurs.
    """
    _check(labels)
    with one_thread():
        return _of_one(Standard.of(rows, per_column), rows, labels, penalty)


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
    _check(labels)
    parts = [*_parts(labels, seed)]
    with one_thread():
        standard = Standard.of(rows, per_column)
        if not parts:
            return _of_one(standard, rows, labels, 1.0)
        x = standard(rows)
        aucs, losses = np.mean([*_validated(x, labels, parts, penalties)], axis=0)
        best = max(range(len(penalties)), key=lambda i: (round(aucs[i], 12), -losses[i]))
        found = _of_one(standard, rows, labels, penalties[best])
    return replace(found, validation_auc=float(aucs[best]))


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


def _of_one(standard: Standard, rows: Rows, labels: Labels, penalty: float) -> LinearProbe:
    weights, biases = fitted(standard(rows), labels[None], [penalty])
    return replace(standard.raw(weights[0], float(biases[0])), penalty=penalty)


def fitted(
    x: Rows, labels: NDArray[np.bool_], penalties: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit several logistic regressions to the same standardised rows.

    Args:
        x: standardised rows, (row, d).
        labels: of each problem, (problem, row), or (1, row) for all problems the same.
        penalties: C of each problem, or one for all.

    Returns:
        Weights (problem, d) and intercepts (problem,).
    """
    n = max(len(labels), len(penalties))
    many = np.broadcast_to(labels, (n, len(x)))
    costs = np.broadcast_to(np.asarray(penalties, dtype=np.float64), (n,))
    if len(x) <= _NEWTON_ROWS:
        a, b = newton(np.broadcast_to(x @ x.T, (n, len(x), len(x))), many, costs)
        return a @ x, b
    # Where rows are fewer than columns, L-BFGS works on their coordinates in their own space.
    z, back = _row_space(x) if len(x) < x.shape[1] else (x, None)
    found = [_lbfgs(z, own, float(c)) for own, c in zip(many, costs, strict=True)]
    weights = np.stack([w for w, _ in found])
    return (weights if back is None else weights @ back), np.array([b for _, b in found])


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


def newton(
    products: NDArray[np.float64], labels: NDArray[np.bool_], penalties: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit many logistic regressions at once in the space of their rows.

    The weights are w = Σᵢ aᵢ xᵢ, and at the optimum a = C · (y − p) and Σ a = 0.

    Args:
        products: x·xᵀ of each problem, (problem, row, row).
        labels: (problem, row).
        penalties: C, (problem,).

    Returns:
        a (problem, row) and intercepts (problem,).
    """
    y, c = labels.astype(np.float64), penalties[:, None]
    a = np.zeros_like(y)
    share = np.clip(y.mean(1), 1e-9, 1 - 1e-9)
    b = np.log(share / (1 - share))
    now = _loss(np.broadcast_to(b[:, None], y.shape), np.zeros(len(y)), y, c)
    eye, open_ = np.eye(y.shape[1]), np.arange(len(y))
    for _ in range(_STEPS):
        k, cc, yy = products[open_], c[open_], y[open_]
        a_new, b_new = _step(k, (a[open_], b[open_]), yy, cc, eye)
        a_new, b_new, loss = _shortened(k, (a[open_], b[open_]), (a_new, b_new), (yy, cc), now)
        gain = now - loss
        a[open_], b[open_] = a_new, b_new
        left = gain > _ENOUGH * (1 + np.abs(loss))
        open_, now = open_[left], loss[left]
        if not len(open_):
            break
    return a, b


_Point = tuple[NDArray[np.float64], NDArray[np.float64]]


def _step(
    k: NDArray[np.float64],
    at: _Point,
    y: NDArray[np.float64],
    c: NDArray[np.float64],
    eye: NDArray[np.float64],
) -> _Point:
    """Return where Newton's method goes from a point."""
    a, b = at
    f = np.einsum("pij,pj->pi", k, a) + b[:, None]
    p = _sigmoid(f)
    u = np.sqrt(np.maximum(p * (1 - p), 1e-18))
    matrix = eye + (c * u)[:, :, None] * k * u[:, None, :]
    known = np.stack([u * f + (y - p) / u, u], axis=-1)
    solved = c[:, :, None] * u[:, :, None] * np.linalg.solve(matrix, known)
    b_new = solved[:, :, 0].sum(1) / solved[:, :, 1].sum(1)
    return solved[:, :, 0] - b_new[:, None] * solved[:, :, 1], b_new


def _shortened(
    k: NDArray[np.float64],
    old: _Point,
    new: _Point,
    known: tuple[NDArray[np.float64], NDArray[np.float64]],
    now: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the points of a step, each halved until the loss is no higher, and the losses."""
    y, c = known
    share = np.ones(len(y))
    move = new[0] - old[0], new[1] - old[1]
    for _ in range(_HALVINGS):
        a = old[0] + share[:, None] * move[0]
        b = old[1] + share * move[1]
        ka = np.einsum("pij,pj->pi", k, a)
        loss = _loss(ka + b[:, None], (a * ka).sum(1), y, c)
        worse = ~(loss <= now + 1e-12 * (1 + np.abs(now)))
        if not worse.any():
            return a, b, loss
        share[worse] /= 2
    stuck = worse[:, None]
    return np.where(stuck, old[0], a), np.where(worse, old[1], b), np.where(worse, now, loss)


def _loss(
    f: NDArray[np.float64],
    square: NDArray[np.float64],
    y: NDArray[np.float64],
    c: NDArray[np.float64],
) -> NDArray[np.float64]:
    each: NDArray[np.float64] = np.logaddexp(0, np.where(y > 0, -f, f))
    total: NDArray[np.float64] = c[:, 0] * each.sum(1) + square / 2
    return total


def _sigmoid(f: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(f, -500, 500)))
    return found


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


def _validated(
    x: Rows, labels: Labels, parts: Sequence[_Part], penalties: Sequence[float]
) -> Iterator[NDArray[np.float64]]:
    """Yield AUC and log-loss of each part's validation rows, (2, C)."""
    n_penalties = len(penalties)
    if max(len(fit) for fit, _ in parts) > _NEWTON_ROWS:
        for fit, validation in parts:
            weights, biases = fitted(x[fit], labels[fit][None], penalties)
            logits = weights @ x[validation].T + biases[:, None]
            yield _judged(logits, labels[validation])
        return
    products = x @ x.T
    # Parts of as many rows are one batch, with every C of each.
    for size in sorted({len(fit) for fit, _ in parts}):
        own = [part for part in parts if len(part[0]) == size]
        k = np.repeat(np.stack([products[np.ix_(fit, fit)] for fit, _ in own]), n_penalties, 0)
        y = np.repeat(np.stack([labels[fit] for fit, _ in own]), n_penalties, 0)
        a, b = newton(k, y, np.tile(np.asarray(penalties), len(own)))
        for i, (fit, validation) in enumerate(own):
            rows = slice(i * n_penalties, (i + 1) * n_penalties)
            logits = a[rows] @ products[np.ix_(fit, validation)] + b[rows, None]
            yield _judged(logits, labels[validation])


def _judged(logits: NDArray[np.float64], labels: Labels) -> NDArray[np.float64]:
    """Return AUC and log-loss of logits (C, row)."""
    aucs = [auc_of(one, labels) for one in logits]
    losses = np.logaddexp(0, np.where(labels, -logits, logits)).mean(1)
    return np.stack([aucs, losses])
