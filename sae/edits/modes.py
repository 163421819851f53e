"""What `do:` of an edit may say: ONE table. Another mode is another entry here.

A mode is a rule for one number of each row of activations. Of a feature the number is its code,
the activation that its dictionary gives it there; of a direction it is the projection `w · x`
on the unit vector w. What the rule adds to the number is added along the direction: all else in
the activations stays, the error of a dictionary's reconstruction too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Numbers = Float[Tensor, "row n"]
"""A number of each row, for each of some features; one column for a direction."""
Amounts = Float[Tensor, "#row n"]
Target = Literal["feature", "direction", "head"]


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to change activations."""

    formula: str
    """The change Δx in words of the direction w, the code f, the projection p and `by` t."""
    rule: Callable[[Numbers, Amounts], Numbers]
    """The new numbers, from the old ones and `by`."""
    by: Literal["size", "factor", "nothing"]
    """Whether `by` is a size that has a unit, a factor that has none, or is not given."""
    targets: tuple[Target, ...]
    """What it can be done to."""
    reads: Literal["nothing", "code", "projection", "either"] = "code"
    """What it has to know of a row; "either" is a feature's code, or else the projection."""
    default: float | None = None
    """Value of `by` where it is left out."""
    least_change: bool = False
    """Whether it moves not along w but where the usual activations change least."""
    exactly: int | None = None
    """Number of features that it takes, if not any."""


def _given(a: Numbers, t: Amounts) -> Numbers:
    return t.expand_as(a)


MODES: Mapping[str, Mode] = {
    "add": Mode("t·w", lambda a, t: a + t, "size", ("feature", "direction"), reads="nothing"),
    "set": Mode("(t − f)·w", _given, "size", ("feature",)),
    "multiply": Mode(
        "(t − 1)·f·w; of a head (t − 1) times its output",
        lambda a, t: a * t,
        "factor",
        ("feature", "head"),
    ),
    "at_least": Mode("max(0, t − f)·w", torch.maximum, "size", ("feature",)),
    "cap": Mode(
        "min(0, t − f)·w; of a direction min(0, t − p)·w",
        torch.minimum,
        "size",
        ("feature", "direction"),
        reads="either",
    ),
    "ablate": Mode(
        "−f·w; of a head its output is taken away",
        lambda a, t: torch.zeros_like(a),
        "nothing",
        ("feature", "head"),
    ),
    "swap": Mode(
        "(g − f)·w + (f − g)·v, of features with codes f and g and directions w and v",
        lambda a, t: a.flip(1),
        "nothing",
        ("feature",),
        exactly=2,
    ),
    "orthogonal": Mode(
        "(t − 1)·p·w; 0, which is meant without `by`, takes the direction out",
        lambda a, t: a * t,
        "factor",
        ("feature", "direction"),
        reads="projection",
        default=0.0,
    ),
    "toward": Mode(
        "(t − p)·M⁻¹w / (wᵀM⁻¹w), with M the second moments of the cache's activations",
        _given,
        "size",
        ("feature", "direction"),
        reads="projection",
        least_change=True,
    ),
    "threshold": Mode(
        "max(0, t − p)·w",
        torch.maximum,
        "size",
        ("feature", "direction"),
        reads="projection",
    ),
}
