"""Which features tell one text from another, judged on parts of both that did not choose them.

Each text is cut into windows of tokens. The first half of the windows of each text ranks the
features, by the AUC of their mean activation in a window; the second half measures that AUC
anew. Whoever takes the best of thousands finds something by chance too, so the same is done
with shuffled labels and with as many random directions; and because no feature need be the best
way to tell two texts apart, the direction between the means of both stands beside them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from sae.classifiers.scores import aucs_of, newcombe
from sae.core.bootstrap import Interval
from sae.core.nulls import random_directions
from sae.dictionary import Dictionary
from sae.models import LanguageModel, Site, locate, read_activations

_CONTEXT = 256
"""Tokens that are read at once."""
_N_SHUFFLED = 20


@dataclass(frozen=True, slots=True)
class Windows:
    """What is in the windows of a text, in their order."""

    features: Float[Tensor, "window d_sae"]
    """Mean activations."""
    rows: Float[Tensor, "window d_in"]
    """Mean activations at the hook that the dictionary reads."""


@dataclass(frozen=True, slots=True)
class Told:
    """A feature that tells the texts apart."""

    feature: int
    ranking_auc: float
    auc: Interval
    """On the windows that did not choose it."""
    mean: tuple[float, float]
    """Its mean activation in the windows of both texts, on those windows."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """What tells two texts apart, beside what chance and a plain direction do."""

    told: tuple[Told, ...]
    n_windows: tuple[int, int]
    """Windows of both texts that AUCs are measured on."""
    shuffled: tuple[float, float]
    """Mean and highest AUC of the best feature for shuffled labels."""
    random_direction: Interval
    """AUC of the best of as many random directions."""
    difference_of_means: Interval


def read_windows(
    model: LanguageModel, dictionary: Dictionary, texts: Iterator[str], window: int, most: int
) -> Windows:
    """Read texts, and average activations over windows of tokens.

    Args:
        model: reads the texts.
        dictionary: gives the features.
        texts: the documents of one side.
        window: tokens in a window; what is left at the end of a document is left out.
        most: tokens that are read at most.
    """
    place = locate(model.module, dictionary.reads[0].place)
    size = max(window, _CONTEXT // window * window)
    features, rows, n_read = [], [], 0
    for text in texts:
        own = model.text_ids(text)
        for at in range(0, len(own) // window * window, size):
            part = own[at : at + size]
            part = part[: len(part) // window * window]
            x = _read(model, place, part)
            acts = dictionary.encode(x.to(dictionary.W_enc.device)).float().cpu()
            features.append(acts.view(-1, window, acts.shape[1]).mean(1))
            rows.append(x.float().cpu().view(-1, window, x.shape[1]).mean(1))
            n_read += len(part)
            if n_read >= most:
                return Windows(torch.cat(features), torch.cat(rows))
    if not features:
        return Windows(torch.empty(0, dictionary.d_sae), torch.empty(0, dictionary.d_in))
    return Windows(torch.cat(features), torch.cat(rows))


def _read(
    model: LanguageModel, place: Site, own: NDArray[np.int32]
) -> Float[Tensor, "position d_in"]:
    """Return the activations at a part of a document's tokens, read after the model's marks."""
    before = model.prompt_ids("")
    ids = torch.from_numpy(np.concatenate([before, own])).long().to(model.device)
    (x,) = read_activations(model.module, [place], ids[None]).values()
    found: Tensor = x[0, len(before) :].float()
    return found


def contrast(first: Windows, second: Windows, n: int, seed: int = 0) -> Contrast:
    """Return the `n` features that tell the first text from the second best.

    Args:
        first: windows of the text where the features are to fire.
        second: windows of the other text.
        n: features to return.
        seed: of shuffled labels and random directions.
    """
    ranking, testing = _halves(first, second)
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
    directions = random_directions(len(by), first.rows.shape[1], seed).double().numpy()
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

    @property
    def n(self) -> tuple[int, int]:
        n_first = int(self.labels.sum())
        return n_first, len(self.labels) - n_first


def _halves(first: Windows, second: Windows) -> tuple[_Half, _Half]:
    """Return the first half of both texts, and the second: neighbours are alike."""
    found = []
    for late in (False, True):
        sides = [
            (one.features[part], one.rows[part])
            for one in (first, second)
            for part in [_part(len(one.features), late)]
        ]
        labels = np.repeat([True, False], [len(side[0]) for side in sides])
        features, rows = (torch.cat([side[i] for side in sides]).t() for i in range(2))
        found.append(_Half(features.double().numpy(), rows.double().numpy(), labels))
    return found[0], found[1]


def _part(n: int, late: bool) -> slice:
    return slice(n // 2, None) if late else slice(0, n // 2)


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
