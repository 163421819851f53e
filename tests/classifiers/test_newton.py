"""Newton's method for many logistic regressions: what is solved together is as if alone."""

import numpy as np
import pytest

from sae.classifiers import (
    PENALTIES,
    fit_logistic_path,
    fit_logistic_paths,
    online_code_lengths,
    permuted_aucs,
    permuted_aucs_of_each,
)
from sae.classifiers.logistic import fitted_each, fitted_paths
from sae.classifiers.newton import RowProblems, newton, newton_path


def problem(n, d=20, seed=0):
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(n, d))
    return rows, rows[:, 0] + generator.normal(size=n) > 0


def test_problems_of_several_sizes_are_solved_together_as_each_alone():
    parts = [problem(n, seed=n) for n in (60, 40, 31, 12, 5)]
    together = newton(RowProblems.of(parts), 3.0)
    for i, (rows, labels) in enumerate(parts):
        alone = newton(RowProblems.of([(rows, labels)]), 3.0)
        np.testing.assert_allclose(together.a[i, : len(rows)], alone.a[0], atol=1e-9)
        assert (together.a[i, len(rows) :] == 0).all()
        assert together.b[i] == pytest.approx(alone.b[0], abs=1e-9)


def test_each_penalty_of_a_path_ends_where_it_ends_from_the_beginning():
    problems = RowProblems.of([problem(50, seed=1), problem(50, seed=2)])
    # Its own order: a path goes from the strongest penalty on, and gives what was asked for.
    a, b = newton_path(problems, PENALTIES)
    for i, penalty in enumerate(PENALTIES):
        alone = newton(problems, penalty)
        scale = np.abs(alone.ka + alone.b[:, None]).max()
        logits = problems.products @ a[i][:, :, None]
        found = logits[:, :, 0] + b[i][:, None]
        np.testing.assert_allclose(found, alone.ka + alone.b[:, None], atol=1e-5 * scale)


def test_at_the_optimum_the_loss_has_no_slope():
    rows, labels = problem(80, 30)
    for penalty in PENALTIES:
        at = newton(RowProblems.of([(rows, labels)]), penalty)
        w = at.a[0] @ rows
        p = 1 / (1 + np.exp(-(rows @ w + at.b[0])))
        slope = w - penalty * (labels - p) @ rows
        assert np.abs(slope).max() < 1e-6 * max(1.0, np.abs(w).max())
        assert abs(at.a[0].sum()) < 1e-6 * max(1.0, np.abs(at.a[0]).max())


def test_parts_on_either_side_of_the_change_of_solver_come_in_their_order():
    parts = [problem(n, 6, seed=n) for n in (20, 400, 90)]
    for (weights, biases), (rows, labels) in zip(
        fitted_paths(parts, [0.1, 10.0]), parts, strict=True
    ):
        for i, penalty in enumerate((0.1, 10.0)):
            ((w, b),) = fitted_each([(rows, labels)], [penalty])
            np.testing.assert_allclose(weights[i], w, atol=1e-6)
            assert biases[i] == pytest.approx(b, abs=1e-6)


@pytest.mark.parametrize("n", [40, 300])
def test_readings_of_the_same_texts_are_fitted_together_as_each_alone(n):
    rows, labels = problem(n, 12)
    many = [rows, np.tanh(rows[:, :5]), rows[:, ::-1] * 3]
    together = fit_logistic_paths(many, labels, seed=2)
    lengths = online_code_lengths(many, labels)
    floors = permuted_aucs_of_each(
        [(x, x) for x in many], (labels, labels), [one.penalty for one in together], n=5
    )
    for x, probe, length, floor in zip(many, together, lengths, floors, strict=True):
        alone = fit_logistic_path(x, labels, seed=2)
        assert (probe.penalty, probe.validation_auc) == (alone.penalty, alone.validation_auc)
        np.testing.assert_allclose(probe.logits(x), alone.logits(x), rtol=1e-6, atol=1e-6)
        assert length.bits == pytest.approx(online_code_lengths([x], labels)[0].bits, rel=1e-6)
        own = permuted_aucs((x, labels), (x, labels), alone.penalty, n=5)
        np.testing.assert_allclose(floor, own, atol=1e-9)


def test_shuffled_labels_choose_their_own_columns():
    rows, labels = problem(60, 300)
    # A column that tells all is of no use to labels that were shuffled.
    rows[:, 7] = np.where(labels, 5.0, -5.0)
    found = permuted_aucs((rows, labels), (rows, labels), 1.0, 40, k=3)
    assert found.shape == (40,)
    assert abs(found.mean() - 0.5) < 0.15
    every = permuted_aucs((rows, labels), (rows, labels), 1.0, 4, k=None)
    np.testing.assert_array_equal(
        every, permuted_aucs((rows, labels), (rows, labels), 1.0, 4, k=300)
    )
