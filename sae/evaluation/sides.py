"""What is told apart, two texts or examples of two labels, and how a model reads it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from sae.base import digest, require
from sae.dictionary import Dictionary
from sae.evaluation.contrast import Sides, Windows
from sae.models import LanguageModel, Site, locate, read_activations
from sae.rows.pooled import tokenized_texts
from sae.text.labelled import LabelledTexts, labelled_texts
from sae.text.source import DataConfig, documents

FEWEST = 8
"""Windows or examples that each half of a side needs, so that an AUC means something."""
_MOST = 256
"""Examples that choose features, and that measure them, at most."""
_CONTEXT = 256
"""Tokens that are read at once."""


class Source(Protocol):
    """What is told apart: its names and content, and how it is read."""

    unit: str

    @property
    def names(self) -> list[str]: ...

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    def read(self, model: LanguageModel, dictionary: Dictionary) -> tuple[Sides, Sides]:
        """Return what chooses features, and what measures them."""
        ...


@dataclass(frozen=True, slots=True)
class TwoTexts:
    """Two texts, read in windows."""

    names: list[str]
    texts: list[list[str]]
    window: int
    max_tokens: int
    unit = "windows"

    @property
    def name(self) -> str:
        return "-or-".join(Path(one).stem for one in self.names)

    @property
    def digest(self) -> str:
        return digest([self.texts, self.window, self.max_tokens])

    def read(self, model: LanguageModel, dictionary: Dictionary) -> tuple[Sides, Sides]:
        halves = []
        for place, several in zip(self.names, self.texts, strict=True):
            found = read_windows(model, dictionary, iter(several), self.window, self.max_tokens)
            require(
                len(found) >= 2 * FEWEST,
                f"{place} has {len(found)} windows of {self.window} tokens, too few to rank "
                f"features on one half and to measure them on the other; give {2 * FEWEST} "
                "at least, or a smaller window=...",
            )
            halves.append(found.halves)
        first, second = halves
        return (first[0], second[0]), (first[1], second[1])


def two_texts(names: list[str], window: int, max_tokens: int) -> TwoTexts:
    """Read two texts, each a file, a folder, a pattern, or a name as for `data=`.

    Args:
        names: of the text where features are to fire, and of the other.
        window: tokens in a window.
        max_tokens: tokens of each that are used at most.

    Raises:
        UserError: if there is no such text.
    """
    texts = [_texts(place, max_tokens) for place in names]
    return TwoTexts(names, texts, window, max_tokens)


@dataclass(frozen=True, slots=True)
class Examples:
    """Examples of two labels, some to choose features and others to measure them."""

    names: list[str]
    choosing: LabelledTexts
    measuring: LabelledTexts
    is_second: bool
    """Whether the features are to fire for the second of the classes."""
    unit = "examples"

    @property
    def name(self) -> str:
        # Labels such as 1 and 0 are those of many tables.
        return re.sub(r"[^\w.-]+", "-", f"{Path(self.choosing.name).stem}-{self.names[0]}")

    @property
    def digest(self) -> str:
        return digest([self.choosing.digest, self.measuring.digest, self.is_second])

    def read(self, model: LanguageModel, dictionary: Dictionary) -> tuple[Sides, Sides]:
        return (
            self._sides(model, dictionary, self.choosing),
            self._sides(model, dictionary, self.measuring),
        )

    def _sides(
        self, model: LanguageModel, dictionary: Dictionary, texts: LabelledTexts
    ) -> Sides:
        found = read_examples(model, dictionary, texts)
        fires = torch.from_numpy(texts.labels == self.is_second)
        return found.at(fires), found.at(~fires)


def examples(name: str, label: str | None, seed: int) -> Examples:
    """Draw as many examples of either label, to choose features and to measure them.

    Args:
        name: of a table with the columns `text` and `label`, or of an embedded set.
        label: the one for which features are to fire; by default the second.
        seed: of the draw.

    Raises:
        UserError: if it is no table of two labels, or has too few examples of one.
    """
    found = labelled_texts(name, "text", "label")
    wanted = found.classes[1] if label is None else label
    require(
        wanted in found.classes,
        f"label={wanted}, but {name} has {found.classes[0]} and {found.classes[1]}",
    )
    names = sorted(found.classes, key=lambda one: one != wanted)
    choosing, measuring = found.drawn(_MOST, _MOST, seed)
    n = min(len(choosing), len(measuring)) // 2
    require(
        n >= FEWEST,
        f"{name} has too few examples: {n} of a label to rank features on and others "
        f"to measure them on; give {2 * FEWEST} of each label at least",
    )
    return Examples(names, choosing, measuring, wanted == found.classes[1])


def _texts(place: str, most: int) -> list[str]:
    """Return the documents of a text, as many as hold the tokens that are read at most."""
    found, n_characters = [], 0
    for document in documents(DataConfig(name=place)):
        require(isinstance(document, str), f"{place} holds no plain text; give a text file")
        found.append(str(document))
        n_characters += len(found[-1])
        # A token has fewer characters than this in every script.
        if n_characters > 16 * most:
            break
    require(bool("".join(found).strip()), f"{place} holds no text")
    return found


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
    before = model.prompt_ids("")
    size = max(window, _CONTEXT // window * window)
    features, rows, n_read = [], [], 0
    for text in texts:
        own = model.text_ids(text)
        for at in range(0, len(own) // window * window, size):
            part = own[at : at + size]
            part = part[: len(part) // window * window]
            x, acts = _read(model, dictionary, place, np.concatenate([before, part]))
            x, acts = x[len(before) :], acts[len(before) :]
            features.append(acts.view(-1, window, acts.shape[1]).mean(1))
            rows.append(x.view(-1, window, x.shape[1]).mean(1))
            n_read += len(part)
            if n_read >= most:
                return Windows(torch.cat(features), torch.cat(rows))
    if not features:
        return Windows(torch.empty(0, dictionary.d_sae), torch.empty(0, dictionary.d_in))
    return Windows(torch.cat(features), torch.cat(rows))


def read_examples(
    model: LanguageModel, dictionary: Dictionary, texts: LabelledTexts
) -> Windows:
    """Read examples, and average activations over the tokens of each.

    Where the examples ask about a part of a text, the last token of that part stands for it.

    Raises:
        UserError: as `tokenized_texts` does.
    """
    place = locate(model.module, dictionary.reads[0].place)
    features, rows = [], []
    for text in tokenized_texts(model, texts, _CONTEXT).texts:
        x, acts = _read(model, dictionary, place, text.ids)
        own = (
            slice(text.first, text.end)
            if text.asked is None
            else slice(text.asked, text.asked + 1)
        )
        features.append(acts[own].mean(0))
        rows.append(x[own].mean(0))
    return Windows(torch.stack(features), torch.stack(rows))


def _read(
    model: LanguageModel, dictionary: Dictionary, place: Site, ids: NDArray[np.int32]
) -> tuple[Float[Tensor, "position d_in"], Float[Tensor, "position d_sae"]]:
    """Return the activations at tokens, and the features of them, in float32 on the CPU."""
    tokens = torch.from_numpy(ids).long().to(model.device)
    (x,) = read_activations(model.module, [place], tokens[None]).values()
    acts = dictionary.encode(x[0].float().to(dictionary.W_enc.device))
    return x[0].float().cpu(), acts.float().cpu()
