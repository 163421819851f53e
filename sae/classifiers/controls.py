"""What a probe scores where there is nothing to know: its floor, and its selectivity."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sae.classifiers.logistic import (
    Labels,
    Rows,
    Standard,
    fitted,
    fitted_paths,
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
    generator = np.random.default_rng(seed)
    shuffled = np.stack([generator.permutation(labels) for _ in range(n)])
    every = k is None or k >= rows.shape[1]
    with one_thread():
        if every:
            standard = Standard.of(rows, per_column)
            weights, biases = fitted(standard(rows), shuffled, penalty)
            logits = weights @ standard(test[0]).T + biases[:, None]
        else:
            chosen = [most_different(rows, own, k or 0) for own in shuffled]
            standards = [Standard.of(rows[:, columns], per_column) for columns in chosen]
            read = [*zip(standards, chosen, shuffled, strict=True)]
            paths = fitted_paths([(to(rows[:, at]), own) for to, at, own in read], [penalty])
            logits = np.stack(
                [
                    to(test[0][:, at]) @ w[0] + b[0]
                    for (to, at, _), (w, b) in zip(read, paths, strict=True)
                ]
            )
    return aucs_of(logits, test[1])


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
