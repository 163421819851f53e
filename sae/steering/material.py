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
from sae.steering.generate import prompt_ids

Ids = Int[Tensor, " position"]
T = TypeVar("T")

N_NEUTRAL = 12
"""Neutral texts, half of them to choose doses on."""
N_CONCEPT = 6
"""Contexts of a feature that its effect is reported on."""
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
    """Of each feature those in which it fires most, from which its label was made."""
    concept: dict[int, list[Ids]]
    """Of each feature others in which it fires: the strongest first."""


def contexts_of(
    atlas: Atlas, model: LanguageModel, features: Sequence[int], seed: int
) -> Contexts:
    """Read what steering with some features is tried on from the contexts of an atlas.

    Raises:
        UserError: if the atlas holds too few silent contexts to be neutral text.
    """
    wanted = {*features}
    learned: dict[int, list[Ids]] = {feature: [] for feature in features}
    banded: dict[int, list[tuple[int, Ids]]] = {feature: [] for feature in features}
    silent: dict[tuple[int, int], Ids] = {}
    for batch in atlas.context_batches():
        columns = ["feature", "group", "band", "sequence", "position", "start", "token_ids"]
        for row in batch.select(columns).to_pylist():
            if row["group"] == "silent":
                # Several features may be silent in one piece.
                silent.setdefault((row["sequence"], row["start"]), _ids(model, row))
            elif row["feature"] in wanted and row["group"] == "top":
                learned[row["feature"]].append(_ids(model, row))
            elif row["feature"] in wanted:
                banded[row["feature"]].append((row["band"], _ids(model, row)))
    require(
        len(silent) >= N_NEUTRAL,
        f"{atlas.folder} holds {len(silent)} silent contexts, and {N_NEUTRAL} are read as "
        "neutral text; run sae analyze with n_silent=4",
    )
    order = np.random.default_rng(seed).permutation(len(silent))[:N_NEUTRAL]
    drawn = [[*silent.values()][i] for i in order]
    strongest = {
        feature: [ids for _, ids in sorted(found, key=lambda one: -one[0])][:N_CONCEPT]
        for feature, found in banded.items()
    }
    return Contexts(Halves(*halves(drawn)), learned, strongest)


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
        f"prompts has {len(prompts)}, too few for a half to choose doses on and a half to "
        "report on; give at least 4",
    )
    found = [prompt_ids(model, prompt) for prompt in prompts]
    for prompt, ids in zip(prompts, found, strict=True):
        require(
            len(ids) >= 2,
            f"the prompt {prompt!r} has one token, and the first is never steered; write more",
        )
    return Halves(*halves(found))
