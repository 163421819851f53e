"""k-sparse probing: what one, five or sixteen features know of a text (sae-probes' way).

Five of the data sets of `sae-probes` 0.4.2 (MIT), of short texts and different kinds, on which
logistic regression on SmolLM2's activations does well, so that there is something to find; 64
texts to train on and 64 to test on each. A probe reads the last token's features,
the k whose means differ most between both labels; beside it stands a logistic regression on the
activations themselves, which it hardly ever beats (Kantamneni and others 2025, arXiv
2502.16681), and the floor: the same probe on features of random directions, as many of them
active as in the dictionary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from sae.classifiers import auc_of, fit_logistic_path, fit_sparse
from sae.core.nulls import random_directions
from sae.dictionary import Dictionary, TopK
from sae.evaluation.averages import mean_finding
from sae.findings import Finding
from sae.models import LanguageModel, Site
from sae.rows.pooled import Reading, pooled_rows, tokenized_texts
from sae.text.labelled import SAE_PROBES_PREFIX, LabelledTexts, labelled_texts

TASKS = (
    "21_headline_istrump",
    "96_spam_is",
    "105_click_bait",
    "123_world_country_United_Kingdom",
    "133_context_type_Causality",
)
KS = (1, 5, 16)
TEXTS = 64
"""Texts to train on, and as many to test on, half of either label."""
_MOST_TOKENS = 64

Rows = Float[Tensor, "text d"]
Labels = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TaskRows:
    """Activations at the last tokens of a task's texts."""

    name: str
    train: Rows
    train_labels: Labels
    test: Rows
    test_labels: Labels


@dataclass(frozen=True, slots=True)
class TaskScore:
    """Score of a probe on the test texts of one task."""

    task: str
    right: Labels
    """Whether it was right about each text."""
    auc: float
    f1: float
    """F1 score of the second label."""

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.right.mean())


@dataclass(frozen=True, slots=True)
class SparseProbing:
    """Probes of the same tasks."""

    raw: tuple[TaskScore, ...]
    """On activations."""
    features: dict[int, tuple[TaskScore, ...]]
    """On k features, by k."""
    random: dict[int, tuple[TaskScore, ...]]
    """On k features of random directions."""


def task_rows(
    model: LanguageModel,
    site: Site,
    names: Sequence[str] = TASKS,
    *,
    seed: int = 0,
    done: Callable[[int], object] = lambda _: None,
) -> tuple[TaskRows, ...]:
    """Read the texts of data sets of `sae-probes`, and return their rows.

    Args:
        seed: of which texts are drawn.
        done: is told how many texts were read.

    Raises:
        UserError: if the package of the data sets cannot be had.
    """
    drawn = [
        labelled_texts(f"{SAE_PROBES_PREFIX}{name}", "text", "label").drawn(TEXTS, TEXTS, seed)
        for name in names
    ]
    reading = Reading("raw", site)

    def read(texts: LabelledTexts) -> Rows:
        tokens = tokenized_texts(model, texts, _MOST_TOKENS).texts
        return pooled_rows(model, tokens, [reading], ["last"], done)[f"{reading.key} last"]

    return tuple(
        TaskRows(name, read(train), train.labels, read(test), test.labels)
        for name, (train, test) in zip(names, drawn, strict=True)
    )


def sparse_probing(
    dictionary: Dictionary, tasks: Sequence[TaskRows], ks: Sequence[int] = KS, *, seed: int = 0
) -> SparseProbing:
    """Fit the probes of every task, with their penalties chosen on parts of the training."""
    device = dictionary.W_enc.device
    random = untrained(dictionary, torch.cat([task.train for task in tasks]), seed)

    def scores(encode: Callable[[Rows], Rows], k: int | None) -> tuple[TaskScore, ...]:
        found = []
        for task in tasks:
            train, test = (_array(encode(x.to(device))) for x in (task.train, task.test))
            if k is None:
                logits = fit_logistic_path(train, task.train_labels, seed).logits(test)
            else:
                logits = fit_sparse(train, task.train_labels, k, seed).logits(test)
            found.append(_score(task, logits))
        return tuple(found)

    return SparseProbing(
        raw=scores(lambda x: x, None),
        features={k: scores(dictionary.encode, k) for k in ks},
        random={k: scores(random.encode, k) for k in ks},
    )


def sparse_probing_findings(found: SparseProbing) -> list[Finding]:
    """Return accuracies over the texts of all tasks, which are as many of each."""
    raw = mean_finding(
        "sparse_probing_raw",
        _right(found.raw),
        unit="texts",
        floor=0.5,
        floor_of="chance, as half of the texts have either label",
    )
    return [
        raw,
        *(
            mean_finding(
                "sparse_probing",
                _right(scores),
                unit="texts",
                floor=float(_right(found.random[k]).mean()),
                floor_of="as many features of random directions",
                of=f"k={k}",
            )
            for k, scores in found.features.items()
        ),
    ]


def untrained(dictionary: Dictionary, x: Rows, seed: int) -> Dictionary:
    """Return a dictionary of random directions, as wide, with as many active on these rows."""
    x = x.to(dictionary.W_enc.device).float()
    l0 = float((dictionary.encode(x) > 0).sum(1).double().mean())
    directions = random_directions(dictionary.d_sae, dictionary.d_in, seed).to(x.device)
    mean = x.mean(0)
    k = min(max(1, round(l0)), dictionary.d_sae)
    return Dictionary.from_weights(
        directions.t(), -directions @ mean, directions, mean, TopK(k)
    )


def _score(task: TaskRows, logits: NDArray[np.float64]) -> TaskScore:
    said, is_so = logits > 0, task.test_labels
    n = int(said.sum() + is_so.sum())
    f1 = 2 * int((said & is_so).sum()) / n if n else 0.0
    return TaskScore(task.name, said == is_so, auc_of(logits, is_so), f1)


def _right(scores: Sequence[TaskScore]) -> Float[Tensor, " text"]:
    return torch.from_numpy(np.concatenate([score.right for score in scores])).double()


def _array(rows: Rows) -> NDArray[np.float64]:
    found: NDArray[np.float64] = rows.double().cpu().numpy()
    return found
