"""Which features tell one text from another, judged on parts of both that did not choose them.

Each text is cut into windows of tokens, or each side is the examples of a label. One half of
either side ranks the features, by the AUC of their mean activation in a window or an example;
the other half measures that AUC anew.

Whoever takes the best of thousands finds something by chance too, so the same is done with
shuffled labels and with as many random directions; and because no feature need be the best way
to tell two texts apart, the direction between the means of both stands beside them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from sae.classifiers.scores import aucs_of, newcombe
from sae.core.bootstrap import Interval
from sae.core.nulls import random_directions

_N_SHUFFLED = 20


@dataclass(frozen=True, slots=True)
class Windows:
    """What is in the windows of a text, or in examples, in their order."""

    features: Float[Tensor, "window d_sae"]
    """Mean activations."""
    rows: Float[Tensor, "window d_in"]
    """Mean activations at the hook that the dictionary reads."""

    def __len__(self) -> int:
        return len(self.features)

    def at(self, which: slice | Bool[Tensor, " window"]) -> "Windows":
        """Return some of the windows."""
        return Windows(self.features[which], self.rows[which])

    @property
    def halves(self) -> tuple["Windows", "Windows"]:
        """The first half and the second, unmixed, because neighbours in a text are alike."""
        return self.at(slice(0, len(self) // 2)), self.at(slice(len(self) // 2, None))


Sides = tuple[Windows, Windows]
"""Windows of both texts, or examples of both labels; those where features are to fire first."""


@dataclass(frozen=True, slots=True)
class Told:
    """A feature that tells the texts apart."""

    feature: int
    ranking_auc: float
    auc: Interval
    """On the windows that did not choose it."""
    mean: tuple[float, float]
    """Its mean activation on both sides, in what did not choose it."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """What tells two texts apart, beside what chance and a plain direction do."""

    told: tuple[Told, ...]
    n_windows: tuple[int, int]
    """Windows or examples of both sides that AUCs are measured on."""
    shuffled: tuple[float, float]
    """Mean and highest AUC of the best feature for shuffled labels."""
    random_direction: Interval
    """AUC of the best of as many random directions."""
    difference_of_means: Interval


def contrast(choosing: Sides, measuring: Sides, n: int, seed: int = 0) -> Contrast:
    """Return the `n` features that tell the first side from the second best.

    Args:
        choosing: what ranks the features.
        measuring: what the best are measured on.
        n: features to return.
        seed: of shuffled labels and random directions.
    """
    ranking, testing = _Half.of(*choosing), _Half.of(*measuring)
    by = aucs_of(ranking.features, ranking.labels)
    best = np.argsort(-by, kind="stable")[:n]
    tested = aucs_of(testing.features[best], testing.labels)
    n_first, n_second = testing.n
    told = tuple(
        Told(
            int(feature),
            float(by[feature]),
            newcombe(float(auc), n_first, n_second),
            _means(testing, int(feature)),
        )
        for feature, auc in zip(best, tested, strict=True)
    )
    shuffled = _best_for_shuffled(ranking, testing, np.random.default_rng(seed))
    directions = random_directions(len(by), len(ranking.rows), seed).double().numpy()
    drawn = int(np.argmax(aucs_of(directions @ ranking.rows, ranking.labels)))
    between = ranking.rows[:, ranking.labels].mean(1) - ranking.rows[:, ~ranking.labels].mean(1)
    beside = aucs_of(
        np.stack([directions[drawn] @ testing.rows, between @ testing.rows]), testing.labels
    )
    random, difference = (newcombe(float(auc), n_first, n_second) for auc in beside)
    return Contrast(
        told,
        (n_first, n_second),
        (float(np.mean(shuffled)), float(np.max(shuffled))),
        random,
        difference,
    )


@dataclass(frozen=True, slots=True)
class _Half:
    features: NDArray[np.float64]
    """(feature, window)."""
    rows: NDArray[np.float64]
    """(d_in, window)."""
    labels: NDArray[np.bool_]

    @classmethod
    def of(cls, first: Windows, second: Windows) -> "_Half":
        """Return both sides one after the other."""
        features = torch.cat([first.features, second.features]).t()
        rows = torch.cat([first.rows, second.rows]).t()
        labels = np.repeat([True, False], [len(first), len(second)])
        return cls(features.double().numpy(), rows.double().numpy(), labels)

    @property
    def n(self) -> tuple[int, int]:
        n_first = int(self.labels.sum())
        return n_first, len(self.labels) - n_first


def _means(half: _Half, feature: int) -> tuple[float, float]:
    acts = half.features[feature]
    return float(acts[half.labels].mean()), float(acts[~half.labels].mean())


def _best_for_shuffled(
    ranking: _Half, testing: _Half, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Return AUCs that the best features for shuffled labels have for other shuffled ones."""
    from scipy.stats import rankdata

    n_first, n_second = ranking.n
    # Ranks know nothing of labels, so once is enough; shuffled labels only choose among them.
    ranks = rankdata(ranking.features, axis=1)
    labels = [generator.permutation(ranking.labels) for _ in range(_N_SHUFFLED)]
    above = ranks @ np.stack(labels, 1) - n_first * (n_first + 1) / 2
    best = np.argmax(above / (n_first * n_second), axis=0)
    found = [
        aucs_of(testing.features[[one]], generator.permutation(testing.labels)) for one in best
    ]
    return np.concatenate(found)
