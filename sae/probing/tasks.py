"""A task as it is probed: texts drawn to train and to test on, and how the model reads them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae.base import require
from sae.classifiers import word_type_labels
from sae.models import LanguageModel
from sae.probing.config import ProbeConfig
from sae.rows.pooled import TokenizedTexts, tokenized_texts
from sae.text.labelled import LabelledTexts, labelled_texts, other_distribution

Labels = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Task:
    """Texts of a task; those to train on, to test on and from elsewhere, one after another."""

    name: str
    texts: LabelledTexts
    n_train: int
    n_test: int
    pools: tuple[str, ...]

    @property
    def train(self) -> slice:
        """Which texts are trained on."""
        return slice(0, self.n_train)

    @property
    def test(self) -> slice:
        """Which are tested on."""
        return slice(self.n_train, self.n_train + self.n_test)

    @property
    def elsewhere(self) -> slice:
        """Texts of another distribution to test on, if the data set has any."""
        return slice(self.n_train + self.n_test, None)

    @property
    def has_elsewhere(self) -> bool:
        """Whether there are texts of another distribution."""
        return len(self.texts) > self.n_train + self.n_test

    def tokens(self, model: LanguageModel, max_tokens: int) -> TokenizedTexts:
        """Return the texts as the model reads them."""
        return tokenized_texts(model, self.texts, max_tokens)


def read_task(name: str, config: ProbeConfig) -> Task:
    """Read a task and draw its texts; no model is needed.

    Raises:
        UserError: if it is none, has too few texts, or lacks the spans that are asked for.
    """
    found = labelled_texts(name, config.text_column, config.label_column)
    require(
        "span" not in config.pools or found.spans is not None,
        f"pools=span, but {name} has no spans; give it the columns start and end, or choose "
        "pools=[last,mean,max]",
    )
    pools = tuple(config.pools) or (("span",) if found.spans else ("last", "mean", "max"))
    train, test = found.drawn(config.n_train, config.n_test, config.seed)
    parts = [train, test]
    other = other_distribution(name)
    if other is not None and other.classes == found.classes:
        seen = {*train.texts, *test.texts}
        new = np.array([i for i, text in enumerate(other.texts) if text not in seen])
        parts.append(other.of(new))
    return Task(name, _joined(name, parts), len(train), len(test), pools)


def _joined(name: str, parts: list[LabelledTexts]) -> LabelledTexts:
    spans = [one.spans for one in parts if one.spans is not None]
    return LabelledTexts(
        name,
        tuple(text for one in parts for text in one.texts),
        np.concatenate([one.labels for one in parts]),
        parts[0].classes,
        tuple(span for several in spans for span in several) or None,
    )


@dataclass(frozen=True, slots=True)
class ControlTask:
    """Labels drawn for each word, and which test texts they can be tested on."""

    train: Labels
    test: Labels
    known: Labels
    """Test texts whose word stands in a training text too."""


def control_task(task: Task, seed: int) -> ControlTask | None:
    """Return the word-type control task of texts that ask about words.

    There is none where texts ask about no word, or too few test words were trained on: labels
    drawn for words tell nothing about other words.
    """
    words = task.texts.words
    if words is None:
        return None
    drawn = word_type_labels(words[: task.n_train + task.n_test], seed)
    train, test = drawn[task.train], drawn[task.test]
    seen = {word.lower() for word in words[task.train]}
    known = np.array([word.lower() in seen for word in words[task.test]])
    both = 0 < train.sum() < len(train) and 0 < test[known].sum() < known.sum()
    return ControlTask(train, test, known) if both else None
