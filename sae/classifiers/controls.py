"""What a probe scores where there is nothing to know: its floor, and its selectivity."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sae.classifiers.logistic import (
    Labels,
    Rows,
    Standard,
    fitted_each,
    one_thread,
)
from sae.classifiers.scores import aucs_of
from sae.classifiers.sparse import most_different


def permuted_aucs(
    train: tuple[Rows, Labels],
    test: tuple[Rows, Labels],
    penalty: float,
    n: int = 8,
    seed: int = 0,
    *,
    k: int | None = None,
    per_column: bool = True,
) -> NDArray[np.float64]:
    """Return AUCs on test rows of probes whose training labels were shuffled, (n,).

    They scatter around one half, about as widely as an AUC without knowledge does. All are
    fitted with one C, that of the probe beside which they stand. With `k` each reads the k
    columns that differ most by its own labels: to choose them is a part of the probe.

    Raises:
        ValueError: if only one class occurs among training or test rows.
    """
    rows, labels = train
    if k is None or k >= rows.shape[1]:
        both, truth = [(rows, test[0])], (labels, test[1])
        return permuted_aucs_of_each(both, truth, [penalty], n, seed, per_column=per_column)[0]
    with one_thread():
        parts, new = list[tuple[Rows, Labels]](), list[Rows]()
        for own in _shuffled(labels, n, seed):
            columns = most_different(rows, own, k)
            standard = Standard.of(rows[:, columns], per_column)
            parts.append((standard(rows[:, columns]), own))
            new.append(standard(test[0][:, columns]))
        fits = fitted_each(parts, [penalty] * n)
        logits = np.stack([x @ w + b for x, (w, b) in zip(new, fits, strict=True)])
    return aucs_of(logits, test[1])


def permuted_aucs_of_each(
    many: Sequence[tuple[Rows, Rows]],
    labels: tuple[Labels, Labels],
    penalties: Sequence[float],
    n: int = 8,
    seed: int = 0,
    *,
    per_column: bool = True,
) -> list[NDArray[np.float64]]:
    """Return `permuted_aucs` of several readings of the same texts, in less time together.

    Args:
        many: training and test rows of each reading.
        labels: of training and test texts.
        penalties: C of each reading.
    """
    shuffled = _shuffled(labels[0], n, seed)
    with one_thread():
        standards = [Standard.of(rows, per_column) for rows, _ in many]
        xs = [to(rows) for to, (rows, _) in zip(standards, many, strict=True)]
        parts = [(x, own) for x in xs for own in shuffled]
        fits = fitted_each(parts, np.repeat(penalties, n).tolist())
        found = []
        for i, (to, (_, new)) in enumerate(zip(standards, many, strict=True)):
            own = fits[i * n : (i + 1) * n]
            logits = np.stack([w for w, _ in own]) @ to(new).T
            biases = np.array([bias for _, bias in own])
            found.append(aucs_of(logits + biases[:, None], labels[1]))
    return found


def _shuffled(labels: Labels, n: int, seed: int) -> list[Labels]:
    generator = np.random.default_rng(seed)
    return [generator.permutation(labels) for _ in range(n)]


def word_type_labels(words: Sequence[str], seed: int = 0) -> Labels:
    """Return labels that are drawn once for each word, whatever it means where it stands.

    Half of the distinct words, in their order of letters, get either label (Hewitt and Liang
    2019, "Designing and Interpreting Probes with Control Tasks"). Capitals do not count.
    """
    types = sorted({word.lower() for word in words})
    drawn = np.random.default_rng(seed).permutation(len(types)) < len(types) / 2
    label_of = dict(zip(types, drawn.tolist(), strict=True))
    return np.array([label_of[word.lower()] for word in words], dtype=bool)


def selectivity(accuracy: float, control_accuracy: float) -> float:
    """Return how much better a probe is at the task than at a control task of drawn labels.

    A probe that could learn anything by heart is as good at both (Hewitt and Liang 2019).
    """
    return accuracy - control_accuracy
