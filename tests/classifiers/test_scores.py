"""Scores with intervals, controls, and code lengths, against what they have to be."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sae.classifiers import (
    auc_of,
    fit_logistic_path,
    online_code_lengths,
    permuted_aucs,
    score,
    selectivity,
    word_type_labels,
)
from sae.classifiers.scores import newcombe, wilson


def test_auc_is_scikit_learns_with_ties_as_well():
    generator = np.random.default_rng(0)
    labels = generator.random(200) > 0.4
    for scores in (generator.normal(size=200), generator.integers(0, 4, 200).astype(float)):
        assert auc_of(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    with pytest.raises(ValueError, match="one class alone"):
        auc_of(np.arange(3.0), np.ones(3, dtype=bool))


def test_intervals_of_auc_hold_the_truth_about_as_often_as_they_say():
    from scipy.stats import norm

    generator, held, trials = np.random.default_rng(0), 0, 400
    labels, truth = np.arange(60) % 2 == 0, float(norm.cdf(1.2 / math.sqrt(2)))
    for _ in range(trials):
        _, low, high = score(generator.normal(size=60) + 1.2 * labels, labels).auc
        held += low <= truth <= high
    assert 0.92 < held / trials <= 0.99


def test_intervals_have_a_width_where_nothing_is_wrong():
    assert newcombe(1.0, 20, 20).high == 1.0
    assert 0.8 < newcombe(1.0, 20, 20).low < 0.99
    assert newcombe(0.0, 20, 20).low == 0.0
    share, low, high = wilson(20, 20)
    assert (share, high) == (1.0, pytest.approx(1.0))
    assert low == pytest.approx(0.8389, abs=1e-3)  # scipy.stats.binomtest(20, 20), wilson


def test_an_interval_narrows_with_more_rows():
    assert newcombe(0.8, 200, 200).low > newcombe(0.8, 20, 20).low


def test_probes_of_shuffled_labels_are_at_chance_within_their_error():
    generator = np.random.default_rng(1)
    rows, labels = generator.normal(size=(200, 30)), np.arange(200) % 2 == 0
    rows[:, 0] += 3 * labels
    train, test = (rows[:100], labels[:100]), (rows[100:], labels[100:])
    found = permuted_aucs(train, test, 0.01, n=64)
    error = found.std() / math.sqrt(len(found))
    assert abs(found.mean() - 0.5) < 3 * error
    assert fit_logistic_path(*train, penalties=[0.01]).logits(test[0])[test[1]].mean() > 0


def test_a_control_task_has_one_label_a_word_and_as_many_of_either():
    words = ["Water", "water", "stone", "air", "fire", "stone"]
    found = word_type_labels(words, seed=4)
    assert found[0] == found[1]
    assert found[2] == found[5]
    assert sum(dict(zip([w.lower() for w in words], found, strict=True)).values()) == 2
    assert (found == word_type_labels(words, seed=4)).all()


def test_a_probe_that_learns_words_by_heart_is_not_selective():
    generator = np.random.default_rng(2)
    words = generator.integers(0, 8, 400)
    rows = np.eye(8)[words]
    control = word_type_labels([f"w{word}" for word in words])
    truth = generator.random(400) > 0.5

    def accuracy(labels):
        probe = fit_logistic_path(rows[:200], labels[:200])
        return score(probe.logits(rows[200:]), labels[200:]).accuracy.mean

    assert accuracy(control) == 1
    assert selectivity(accuracy(truth), accuracy(control)) <= 0


@pytest.mark.parametrize("n", [200, 700])
def test_noise_costs_a_bit_a_label(n):
    generator = np.random.default_rng(3)
    rows, labels = generator.normal(size=(n, 20)), generator.random(n) > 0.5
    (found,) = online_code_lengths([rows], labels)
    assert found.bits == pytest.approx(n, rel=0.08)
    assert found.compression == n / found.bits


def test_what_is_easily_learned_is_a_short_code():
    generator = np.random.default_rng(3)
    labels = generator.random(200) > 0.5
    rows = generator.normal(size=(200, 20))
    rows[:, 0] = np.where(labels, 9, -9)
    found = online_code_lengths([rows], labels)[0]
    assert found.bits < 30
    assert found.compression > 6
