"""Logistic regression: it equals scikit-learn's, and what must not matter does not."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from sae.classifiers import (
    PENALTIES,
    difference_of_means,
    fit_logistic_path,
    fit_sparse,
    most_different,
    score,
)
from sae.classifiers.logistic import Standard


def rows_of(n, d, seed=0):
    """Correlated rows, and labels that a direction of them tells, with noise."""
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(n, d)) @ generator.normal(size=(d, d)) * np.logspace(1, -1, d)
    logits = rows @ generator.normal(size=d)
    return rows, logits / logits.std() + generator.normal(size=n) > 0


@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1, 1e3])
def test_few_rows_are_fitted_as_scikit_learn_does(penalty):
    rows, labels = rows_of(80, 120)
    found = fit_logistic_path(rows, labels, penalties=[penalty])
    model = LogisticRegression(C=penalty, tol=1e-10, max_iter=100_000)
    x = Standard.of(rows)(rows)
    expected = model.fit(x, labels).decision_function(x)
    np.testing.assert_allclose(found.logits(rows), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(400, 30), (300, 600)])
def test_many_rows_are_fitted_as_scikit_learn_does(shape):
    rows, labels = rows_of(*shape)
    found = fit_logistic_path(rows, labels, penalties=[0.1])
    model = LogisticRegression(C=0.1, tol=1e-9, max_iter=100_000)
    x = Standard.of(rows)(rows)
    expected = model.fit(x, labels).decision_function(x)
    np.testing.assert_allclose(found.logits(rows), expected, rtol=1e-2, atol=1e-2)


def test_the_chosen_penalty_is_that_of_scikit_learns_folds():
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    rows, labels = rows_of(60, 40)
    found = fit_logistic_path(rows, labels, seed=3)
    folds = StratifiedKFold(6, shuffle=True, random_state=3)
    x = Standard.of(rows)(rows)
    model = LogisticRegression(C=found.penalty, tol=1e-8, max_iter=100_000)
    auc = cross_val_score(model, x, labels, cv=folds, scoring="roc_auc").mean()
    assert found.validation_auc == pytest.approx(auc, abs=1e-9)
    assert found.penalty in PENALTIES


@pytest.mark.parametrize("n", [4, 8, 12, 13, 60, 127, 128, 300])
def test_every_number_of_rows_has_its_way_of_validation(n):
    rows, _ = rows_of(n, 5)
    labels = np.arange(n) % 2 == 0
    found = fit_logistic_path(rows, labels)
    assert 0 <= found.validation_auc <= 1


@pytest.mark.parametrize("labels", [[True, False, False], [True, False]])
def test_where_nothing_can_be_validated_the_penalty_is_one(labels):
    rows, _ = rows_of(len(labels), 5)
    found = fit_logistic_path(rows, np.array(labels))
    assert (found.penalty, found.validation_auc) == (1.0, None)


def test_fewer_rows_of_a_class_than_folds_are_told_apart_all_the_same():
    rows, _ = rows_of(40, 5)
    labels = np.arange(40) < 3
    assert fit_logistic_path(rows, labels).validation_auc is not None
    assert fit_logistic_path(rows, np.arange(40) < 1).validation_auc is None


@pytest.mark.parametrize("fit", [fit_logistic_path, difference_of_means])
def test_classes_that_lie_apart_are_told_apart(fit):
    rows, labels = rows_of(60, 8)
    rows[:, 0] = np.where(labels, 50, -50)
    new, truth = rows_of(60, 8, seed=1)
    new[:, 0] = np.where(truth, 50, -50)
    assert score(fit(rows, labels).logits(new), truth).auc.mean == 1


def test_rows_given_twice_change_nothing_at_half_the_c():
    for n in (60, 400):
        rows, labels = rows_of(n, 30)
        once = fit_logistic_path(rows, labels, penalties=[0.2])
        both = np.tile(rows, (2, 1)), np.tile(labels, 2)
        twice = fit_logistic_path(*both, penalties=[0.1])
        scale = np.abs(once.weights).max()
        np.testing.assert_allclose(twice.weights, once.weights, atol=1e-3 * scale)
        assert twice.bias == pytest.approx(once.bias, abs=1e-3 * (1 + abs(once.bias)))


@pytest.mark.parametrize("n", [60, 300])
def test_the_unit_of_a_column_changes_nothing(n):
    rows, labels = rows_of(n, 30)
    other = rows.copy()
    other[:, 3] = 1000 * rows[:, 3] - 7
    before, after = (fit_logistic_path(x, labels) for x in (rows, other))
    assert after.penalty == before.penalty
    np.testing.assert_allclose(after.logits(other), before.logits(rows), rtol=1e-5, atol=1e-6)


def test_a_column_that_never_varies_has_no_say():
    rows, labels = rows_of(60, 6)
    with_constant = np.column_stack([rows, np.full(60, 0.1)])
    found = fit_logistic_path(with_constant, labels)
    assert abs(found.weights[-1]) < 1e-12
    np.testing.assert_allclose(
        found.logits(with_constant), fit_logistic_path(rows, labels).logits(rows), atol=1e-8
    )


def test_one_class_alone_is_no_task():
    rows, _ = rows_of(20, 5)
    for fit in (fit_logistic_path, difference_of_means):
        with pytest.raises(ValueError, match="one class alone"):
            fit(rows, np.ones(20, dtype=bool))


def test_the_columns_that_differ_most_are_found_on_the_rows_given_alone():
    rows, labels = rows_of(60, 20)
    rows = rows / rows.std(0)
    rows[:, 7] += 100 * labels
    rows[:, 2] -= 200 * labels
    assert most_different(rows, labels, 2).tolist() == [2, 7]
    found = fit_sparse(rows, labels, 1)
    assert found.columns.tolist() == [2]
    assert score(found.logits(rows), labels).auc.mean == 1


def test_all_columns_are_the_probe_of_the_rows_as_they_are():
    rows, labels = rows_of(60, 20)
    raw = fit_logistic_path(rows, labels)
    for k in (None, 20, 50):
        found = fit_sparse(rows, labels, k).logits(rows)
        np.testing.assert_allclose(found, raw.logits(rows), rtol=1e-9, atol=1e-12)


def test_features_keep_their_proportions_where_they_share_a_unit():
    rows, labels = rows_of(60, 20)
    x = Standard.of(rows, per_column=False)(rows)
    spreads = x.std(0) / rows.std(0)
    np.testing.assert_allclose(spreads, spreads[0])
    assert np.square(x).mean() == pytest.approx(1)
    found = fit_logistic_path(rows, labels, penalties=[0.1], per_column=False)
    model = LogisticRegression(C=0.1, tol=1e-10, max_iter=100_000).fit(x, labels)
    np.testing.assert_allclose(
        found.logits(rows), model.decision_function(x), rtol=1e-4, atol=1e-4
    )
