"""One arm of a comparison at one dose: its figures, text by text, and what is shown of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.core.bootstrap import Interval, bootstrap_mean

READ = ("shift", "gain", "kl", "delta_ce")
"""Figures of a model that reads."""
WRITTEN = ("round_trip", "perplexity", "distinct_2", "longest_repeat")
"""Figures of a text that was written."""
FIGURES = READ + WRITTEN
_GEOMETRIC = "perplexity"
"""Kept as its logarithm, so that its mean is the geometric one."""

Values = Float[Tensor, " text"] | Float[Tensor, "feature text"]


def interval_of(figure: str, values: Values) -> Interval:
    """Return the mean of a figure with its 95% interval."""
    found = bootstrap_mean(values)
    if figure != _GEOMETRIC:
        return found
    return Interval(*(math.exp(min(value, 700.0)) for value in found))


@dataclass(frozen=True, slots=True)
class Trial:
    """One arm at one dose, on the reporting half."""

    arm: str
    strength: float | None
    """Strength in multiples of what the arm adds at strength 1; None for an arm without a
    dose."""
    operating: bool = False
    """Whether this is the dose that was chosen for the arm on the other half."""
    figures: Mapping[str, Float[Tensor, " text"]] = field(default_factory=dict)
    """By the names in `FIGURES`; those of text are left out where none was written."""

    def to_json(self) -> dict[str, Any]:
        """Return what the results hold of it."""
        shown = {
            figure: interval_of(figure, self.figures[figure]).to_json()
            if figure in self.figures
            else None
            for figure in FIGURES
        }
        about = {"direction": self.arm, "strength": self.strength}
        return about | {"operating": self.operating} | shown


def difference(mine: Trial | None, other: Trial | None, figure: str) -> Values:
    """Return how far one trial is ahead of another, text by text; not numbers without both."""
    if mine is None or other is None:
        return torch.full((1,), math.nan)
    return mine.figures[figure] - other.figures[figure]
