"""What steering is tried on: prompts, neutral text and a feature's own contexts, in halves.

Doses are chosen on one half, and what is reported is of the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sae.atlas import Atlas
from sae.base import require
from sae.models import LanguageModel
from sae.text.token_texts import BYTE
from sae.writing import prompt_ids

Ids = Int[Tensor, " position"]
T = TypeVar("T")

N_NEUTRAL = 12
"""Neutral texts, half of them to choose doses on."""
N_CONCEPT = 6
"""Contexts of a feature that its effect is reported on."""
_SHORTEST = 7
"""Tokens of a context, fewer of which say little of a cost."""
_BEFORE, _AFTER = 6, 14
"""Tokens of a context that are read before and after the one that it was chosen for."""


@dataclass(frozen=True, slots=True)
class Halves:
    """Texts to choose on, and texts to report on."""

    choosing: list[Ids]
    reporting: list[Ids]


def halves(texts: Sequence[T]) -> tuple[list[T], list[T]]:
    """Return every second text from the first on, and the others."""
    return [*texts[::2]], [*texts[1::2]]


@dataclass(frozen=True, slots=True)
class Contexts:
    """Pieces of an atlas's text."""

    neutral: Halves
    """Pieces in which some feature, drawn at random, is silent."""
    learned: dict[int, list[Ids]]
    """For each feature, the contexts in which it fires most, from which its label was made."""
    concept: dict[int, list[Ids]]
    """For each feature, contexts from other sequences in which it fires, the strongest
    first."""


def contexts_of(
    atlas: Atlas, model: LanguageModel, features: Sequence[int], seed: int
) -> Contexts:
    """Read what steering with some features is tried on from the contexts of an atlas.

    Raises:
        UserError: if the atlas holds too few silent contexts to be neutral text.
    """
    top: dict[int, dict[int, Ids]] = {feature: {} for feature in features}
    banded: dict[int, list[tuple[int, int, Ids]]] = {feature: [] for feature in features}
    silent: dict[int, Ids] = {}
    columns = ["feature", "group", "band", "sequence", "position", "start", "token_ids"]
    for batch in atlas.context_batches():
        for row in batch.select(columns).to_pylist():
            feature, sequence = row["feature"], row["sequence"]
            if row["group"] == "silent" and sequence not in silent:
                # One piece of a sequence, so that the halves share none.
                silent[sequence] = _ids(model, row)
            elif row["group"] == "top" and feature in top:
                top[feature][sequence] = _ids(model, row)
            elif row["group"] == "band" and feature in top:
                banded[feature].append((row["band"], sequence, _ids(model, row)))
    neutral = _drawn(atlas, [ids for ids in silent.values() if len(ids) >= _SHORTEST], seed)
    learned = {feature: _learned(feature, [*of.values()]) for feature, of in top.items()}
    concept = {
        # Those that the label was made from, and the difference of means, are no test of them.
        feature: [
            ids
            for _, sequence, ids in sorted(found, key=lambda one: -one[0])
            if sequence not in top[feature] and len(ids) >= _SHORTEST
        ][:N_CONCEPT]
        for feature, found in banded.items()
    }
    return Contexts(Halves(*halves(neutral)), learned, concept)


def _drawn(atlas: Atlas, silent: Sequence[Ids], seed: int) -> list[Ids]:
    require(
        len(silent) >= N_NEUTRAL,
        f"{atlas.folder} holds {len(silent)} sequences with a silent context of at least "
        f"{_SHORTEST} tokens, but {N_NEUTRAL} are needed as neutral text; run sae analyze "
        "with a larger n_silent or context_radius, or with more text",
    )
    order = np.random.default_rng(seed).permutation(len(silent))[:N_NEUTRAL]
    return [silent[i] for i in order]


def _learned(feature: int, found: Sequence[Ids]) -> list[Ids]:
    long = [ids for ids in found if len(ids) >= 2]
    require(
        bool(long),
        f"feature {feature} has no context with any token besides the one that it fires on; "
        "run sae analyze with a larger context_radius",
    )
    return long


def _ids(model: LanguageModel, row: dict[str, Any]) -> Ids:
    """Return a context's ids, begun as the model's documents are."""
    begin, peak = [*model.marks.begin], row["position"] - row["start"]
    ids = row["token_ids"][max(0, peak - _BEFORE) : peak + _AFTER + 1]
    return torch.tensor(ids if ids[: len(begin)] == begin else [*begin, *ids])


def prompts_of(model: LanguageModel, prompts: Sequence[str]) -> Halves:
    """Return the ids of prompts, in halves.

    Raises:
        UserError: if there are too few for two halves, or one has a single token.
    """
    require(
        len(prompts) >= 4,
        f"there are {len(prompts)} prompts, too few for choosing doses on one half and "
        "reporting on the other; give at least 4",
    )
    require(
        len({*prompts}) == len(prompts),
        "one prompt occurs twice, so doses could be chosen and reported on the same text; "
        "give different prompts",
    )
    found = [prompt_ids(model, prompt) for prompt in prompts]
    for prompt, ids in zip(prompts, found, strict=True):
        require(
            len(ids) >= 2,
            f"the prompt {prompt!r} has only one token, and the first token is never "
            "steered; write more",
        )
    return Halves(*halves(found))


def told(row: dict[str, Any], against: bool = False) -> str:
    """Return what one would write instead of steering, or what is to hold out against it."""
    shown = row["top_logit_tokens"]
    words = [token.strip() for token in shown if token.strip() and not BYTE.search(token)]
    says = "says nothing about" if against else "is about"
    return f"The following text {says} {', '.join(words[:5])}.\n\n"
