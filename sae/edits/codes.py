"""Changes of single features, and of the activations along one direction."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.dictionary import Dictionary, Normalisation
from sae.edits.changes import Read, Rows, Written
from sae.edits.modes import Amounts, Numbers
from sae.edits.positions import Positions
from sae.models import Site

Amount = Float[Tensor, "#sequence n"]
"""A number for each of some features or for a direction: for each sequence of a batch, or one
row for all."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Computes the codes of some features of a dictionary, and no others where that will do."""

    dictionary: Dictionary
    features: Int[Tensor, " feature"] | None
    """Which features of `dictionary` are meant; all of it if left out."""

    @classmethod
    def of(cls, dictionary: Dictionary, features: Sequence[int]) -> "Reader":
        """Return the reader of some features, in the order given."""
        chosen = torch.tensor(features, device=dictionary.W_enc.device)
        if dictionary.activation.each_alone:
            return cls(dictionary.of_latents(chosen), None)
        return cls(dictionary, chosen)

    def __call__(self, x: Read) -> Numbers:
        """Return the codes at rows of activations, (row, feature)."""
        codes = self.dictionary.encode(x)
        return codes if self.features is None else codes.index_select(1, self.features)


@dataclass(frozen=True, slots=True)
class Gate:
    """A feature that has to be above, or below, a code for an edit to be made at a position."""

    site: Site
    """Site that the dictionary of these codes reads."""
    reader: Reader
    """Gives the code of the one feature."""
    above: float | None
    below: float | None

    def is_open(self, x: Read) -> Bool[Tensor, " row"]:
        """Return at which of some rows the edit is made."""
        return self.is_open_at(self.reader(x)[:, 0])

    def is_open_at(self, codes: Float[Tensor, " row"]) -> Bool[Tensor, " row"]:
        """Return the same, where the codes are known."""
        found = torch.ones_like(codes, dtype=torch.bool)
        if self.above is not None:
            found &= codes > self.above
        if self.below is not None:
            found &= codes < self.below
        return found


@dataclass(frozen=True, slots=True)
class Step:
    """One operation on the codes of some features."""

    columns: Int[Tensor, " chosen"]
    """Which of the features that the change reads."""
    rule: Callable[[Numbers, Amounts], Numbers]
    amount: Amount
    positions: Positions
    gate: tuple[int, Gate] | None = None
    """The column of a gate of the same dictionary, and its limits."""


@dataclass(frozen=True, slots=True)
class Codes:
    """Operations on features of one dictionary, one after the other.

    All see the activations as they arrive, encoded once; then the difference of the codes is
    added, decoded. Where no code changes, activations stay as they are to the bit.
    """

    reader: Reader
    directions: Float[Tensor, "feature d_out"]
    """The decoder's direction of each feature that is read."""
    steps: tuple[Step, ...]
    normalisation: Normalisation | None = None
    """What the dictionary undoes in what it writes, if anything."""

    def apply(self, x: Read, y: Written, rows: Rows) -> Written:
        before = self.reader(x).to(self.directions.dtype)
        codes = before
        for step in self.steps:
            at = rows.chosen(step.positions)
            if step.gate is not None:
                column, gate = step.gate
                at = at & gate.is_open_at(before[:, column])
            old = codes.index_select(1, step.columns)
            new = step.rule(old, amounts(step.amount, rows, old))
            codes = codes.index_copy(1, step.columns, torch.where(at[:, None], new, old))
        delta = (codes - before) @ self.directions
        if self.normalisation is not None:
            delta = delta * self.normalisation.lengths(y.to(delta.dtype))
        return added(y, delta)


@dataclass(frozen=True, slots=True)
class Along:
    """The activations' projection on a unit direction is changed, by moving along `step`."""

    direction: Float[Tensor, " d"]
    """A unit vector w."""
    rule: Callable[[Numbers, Amounts], Numbers]
    amount: Amount
    step: Float[Tensor, " d"]
    """What raises the projection by one: w itself, or M⁻¹w / (wᵀM⁻¹w)."""

    def apply(self, x: Read, y: Written, rows: Rows) -> Written:
        before = (y.to(self.direction.dtype) @ self.direction)[:, None]
        after = self.rule(before, amounts(self.amount, rows, before))
        return added(y, (after - before) * self.step)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the activations is changed, such as what one head gives of `attn.hook_z`."""

    first: int
    end: int
    rule: Callable[[Numbers, Amounts], Numbers]
    amount: Amount

    def apply(self, x: Read, y: Written, rows: Rows) -> Written:
        part = y[:, self.first : self.end]
        new = self.rule(part, amounts(self.amount, rows, part[:, :1]))
        return torch.cat([y[:, : self.first], new, y[:, self.end :]], dim=1)


def amounts(amount: Amount, rows: Rows, like: Float[Tensor, "row m"]) -> Amounts:
    """Return the amounts of each row, or one row for all."""
    moved = amount.to(like)
    return moved if len(moved) == 1 else rows.own(moved)


def added(y: Written, delta: Float[Tensor, "row d_out"]) -> Written:
    """Return the sum, in the type of `y`; what changes by nothing stays as it is to the bit."""
    if not delta.requires_grad:
        # Adding minus zero changes nothing, not even the sign of a zero.
        delta = delta.masked_fill(delta == 0, -0.0)
    return (y.to(delta.dtype) + delta).to(y.dtype)
