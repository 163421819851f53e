"""What becomes of activations that an edit touches. Another kind of change is another class."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.base import require
from sae.dictionary import Normalisation
from sae.edits.positions import Positions, Window

Read = Float[Tensor, "row d_in"]
"""Activations at the source of an edit."""
Written = Float[Tensor, "row d_out"]
"""Activations at its site."""
Reconstruction = Callable[[Tensor], Tensor]
"""A dictionary: activations that it writes from those that it reads."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Where rows of activations stand in what a forward pass computes."""

    at: Int[Tensor, " row"]
    """Number of each row in the window laid end to end, sequence after sequence."""
    window: Window

    @property
    def sequence(self) -> Int[Tensor, " row"]:
        """Each row's text in the batch; beams of one text have its number."""
        width = self.window.end - self.window.start
        return self.at // (width * self.window.copies)

    @property
    def column(self) -> Int[Tensor, " row"]:
        """Each row's column, padding before its text included."""
        width = self.window.end - self.window.start
        return self.window.start + self.at % width

    def chosen(self, positions: Positions) -> Bool[Tensor, " row"]:
        """Return which rows are at some positions."""
        return self.window.mask(positions).flatten().to(self.at.device)[self.at]

    def own(self, values: Float[Tensor, "*place d"]) -> Float[Tensor, "*row d"]:
        """Return each row's part of values (d,), (sequence, d) or (sequence, column, d)."""
        if values.dim() == 1:
            return values
        n = self.window.n_sequences // self.window.copies
        require(
            len(values) == n,
            f"an edit has values for {len(values)} sequences, but the model is run on {n}; "
            "give a text for each value",
        )
        if values.dim() == 2:
            return values.index_select(0, self.sequence)
        return values[self.sequence, self.column]


@runtime_checkable
class Change(Protocol):
    """What becomes of the rows of activations that an edit touches."""

    def apply(self, x: Read, y: Written, rows: Rows) -> Written:
        """Return new activations in the place of `y`; `x` is `y` without a source."""
        ...


@dataclass(frozen=True, slots=True)
class Add:
    """A vector is added: to all activations the same, or to those of each sequence its own."""

    vectors: Float[Tensor, "*place d_out"]
    normalisation: Normalisation | None = None
    """Normalisation of a dictionary that scales each row by its own norm. The vector has its
    length in that unit, so it is multiplied by the length of the row that it is added to."""

    def __post_init__(self) -> None:
        if not self.vectors.requires_grad:
            # Adding minus zero changes nothing, not even the sign of a zero.
            quiet = self.vectors.masked_fill(self.vectors == 0, -0.0)
            object.__setattr__(self, "vectors", quiet)

    def apply(self, x: Read, y: Written, rows: Rows) -> Written:
        own = rows.own(self.vectors.to(y))
        return y + (own if self.normalisation is None else own * self.normalisation.lengths(y))


@dataclass(frozen=True, slots=True)
class Put:
    """A value takes the activations' place: one for all, or each sequence and position its own.

    Zeros or a mean ablate; activations of another forward pass patch.
    """

    value: Float[Tensor, "*place d_out"]

    def apply(self, x: Read, y: Written, rows: Rows) -> Written:
        return rows.own(self.value.to(y)).expand_as(y)


@dataclass(frozen=True, slots=True)
class Splice:
    """Replace activations by what a dictionary reconstructs from those at the source."""

    dictionary: Reconstruction

    def apply(self, x: Read, y: Written, rows: Rows) -> Written:
        return self.dictionary(x)
