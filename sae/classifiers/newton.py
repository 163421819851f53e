"""Newton's method for logistic regressions of few rows, many problems and penalties at once.

The weights of a penalised fit are a sum of its rows, w = Σᵢ aᵢ xᵢ, so that products of rows are
all that is needed (Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning",
algorithm 3.1, here with a free intercept). At the optimum a = C · (y − p) and Σ a = 0. On a
path the strongest penalty comes first, and each C starts from the last solution, moved on once
more by what had changed since the one before it: where classes are apart, logits grow about as
much from each C to the next, and from zero the way to them is long (three steps a C were
measured where there had been nine).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_STEPS, _HALVINGS = 60, 12
_ENOUGH = 1e-8
"""Share of the loss: a step that gains less is the last one. So near to the optimum the next
step would gain about the square of it."""


@dataclass(frozen=True, slots=True)
class RowProblems:
    """Several problems of one size; shorter ones are filled up with rows that do not count."""

    products: NDArray[np.float64]
    """x·xᵀ of each, (problem, row, row)."""
    labels: NDArray[np.float64]
    """1 for rows of the second class, (problem, row)."""
    counted: NDArray[np.float64]
    """1 for each row that is one, (problem, row)."""

    @classmethod
    def of(
        cls, members: Sequence[tuple[NDArray[np.float64], NDArray[np.bool_]]]
    ) -> "RowProblems":
        """Return the problems of rows (row, d) with their labels (row,)."""
        n, most = len(members), max(len(rows) for rows, _ in members)
        found = cls(np.zeros((n, most, most)), np.zeros((n, most)), np.zeros((n, most)))
        before = products = None
        for i, (rows, labels) in enumerate(members):
            own = slice(0, len(rows))
            # Several labellings of the same rows follow each other.
            if rows is not before:
                before, products = rows, rows @ rows.T
            found.products[i, own, own] = products
            found.labels[i, own] = labels
            found.counted[i, own] = 1
        return found

    def __getitem__(self, which: NDArray[np.bool_]) -> "RowProblems":
        """Return some of the problems."""
        if which.all():
            return self
        return RowProblems(self.products[which], self.labels[which], self.counted[which])


class Point(NamedTuple):
    """Where several problems stand, or how far they move."""

    a: NDArray[np.float64]
    """Share of each row in the weights, (problem, row)."""
    b: NDArray[np.float64]
    """Intercepts, (problem,)."""
    ka: NDArray[np.float64]
    """Products of rows times a, (problem, row)."""

    @classmethod
    def first(cls, problems: RowProblems) -> "Point":
        """Return no weights, and intercepts that say how frequent the second class is."""
        share = problems.labels.sum(1) / problems.counted.sum(1)
        share = np.clip(share, 1e-9, 1 - 1e-9)
        zero = np.zeros_like(problems.labels)
        return cls(zero, np.log(share / (1 - share)), zero)

    def moved(self, move: "Point", share: NDArray[np.float64]) -> "Point":
        """Return the points after a share of a move, (problem,)."""
        wide = share[:, None]
        return Point(self.a + wide * move.a, self.b + share * move.b, self.ka + wide * move.ka)


def newton_path(
    problems: RowProblems, penalties: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Solve all problems with each C.

    Returns:
        a (C, problem, row) and intercepts (C, problem).
    """
    at = before = Point.first(problems)
    a = np.empty((len(penalties), *problems.labels.shape))
    b = np.empty(a.shape[:2])
    ahead = np.ones(len(problems.labels))
    for i in np.argsort(penalties):
        step = Point(at.a - before.a, at.b - before.b, at.ka - before.ka)
        before, at = at, newton(problems, penalties[i], at.moved(step, ahead))
        a[i], b[i] = at.a, at.b
    return a, b


def newton(
    problems: RowProblems,
    penalty: float | NDArray[np.float64],
    start: Point | None = None,
) -> Point:
    """Solve all problems with one C, or each with its own (problem,).

    It goes on to the optimum, and not to a tolerance of gradients.
    """
    at = Point.first(problems) if start is None else start
    found = Point(at.a.copy(), at.b.copy(), at.ka.copy())
    c = np.reshape(penalty, (-1, 1)) * problems.counted
    now = _loss(at, problems.labels, c)
    left = np.arange(len(c))
    eye = np.eye(c.shape[1])
    for _ in range(_STEPS):
        move = _step(problems, at, c, eye)
        at, loss = _shortened(at, move, problems.labels, c, now)
        found.a[left], found.b[left], found.ka[left] = at
        going = now - loss > _ENOUGH * (1 + np.abs(loss))
        if not going.any():
            break
        problems, left, now, c = problems[going], left[going], loss[going], c[going]
        at = Point(at.a[going], at.b[going], at.ka[going])
    return found


def _step(
    problems: RowProblems, at: Point, c: NDArray[np.float64], eye: NDArray[np.float64]
) -> Point:
    """Return how far Newton's method goes from a point."""
    k, f = problems.products, at.ka + at.b[:, None]
    p = 1 / (1 + np.exp(-np.clip(f, -500, 500)))
    u = np.sqrt(np.maximum(p * (1 - p), 1e-18))
    matrix = (c * u)[:, :, None] * k
    matrix *= u[:, None, :]
    matrix += eye
    known = np.stack([u * f + (problems.labels - p) / u, u], axis=-1)
    solved = (c * u)[:, :, None] * np.linalg.solve(matrix, known)
    b = solved[:, :, 0].sum(1) / solved[:, :, 1].sum(1)
    a = solved[:, :, 0] - b[:, None] * solved[:, :, 1] - at.a
    return Point(a, b - at.b, np.matmul(k, a[:, :, None])[:, :, 0])


def _shortened(
    at: Point,
    move: Point,
    y: NDArray[np.float64],
    c: NDArray[np.float64],
    now: NDArray[np.float64],
) -> tuple[Point, NDArray[np.float64]]:
    """Return points after a step, halved until the loss is no higher, and losses."""
    share = np.ones(len(y))
    for _ in range(_HALVINGS):
        moved = at.moved(move, share)
        loss = _loss(moved, y, c)
        worse = ~(loss <= now + 1e-12 * (1 + np.abs(now)))
        if not worse.any():
            return moved, loss
        share[worse] /= 2
    # No shorter step helps: they stay where they were.
    share[worse] = 0
    return at.moved(move, share), np.where(worse, now, loss)


def _loss(at: Point, y: NDArray[np.float64], c: NDArray[np.float64]) -> NDArray[np.float64]:
    f = at.ka + at.b[:, None]
    each: NDArray[np.float64] = np.logaddexp(0, np.where(y > 0, -f, f))
    total: NDArray[np.float64] = (c * each).sum(1) + (at.a * at.ka).sum(1) / 2
    return total
