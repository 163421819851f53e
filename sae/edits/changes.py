"""Changes of activations. Another kind of change is another class with a method `apply`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float, Int
from torch import Tensor

from sae.base import require

Reconstruction = Callable[[Tensor], Tensor]
"""A dictionary: activations (row, d_out) from those that it reads, (row, d_in)."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Where rows of activations stand: each one's sequence in the batch, and position there."""

    sequence: Int[Tensor, " row"]
    position: Int[Tensor, " row"]
    n_sequences: int
    """Of the whole batch."""

    def own(self, values: Float[Tensor, "*place d"]) -> Float[Tensor, "*row d"]:
        """Return each row's part of values (d,), (sequence, d) or (sequence, position, d)."""
        if values.dim() == 1:
            return values
        require(
            len(values) == self.n_sequences,
            f"an edit has values for {len(values)} sequences, but the model is run on "
            f"{self.n_sequences}",
        )
        if values.dim() == 2:
            return values.index_select(0, self.sequence)
        return values[self.sequence, self.position]


class Change(Protocol):
    """What becomes of the rows of activations that an edit touches."""

    def apply(
        self, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"], rows: Rows
    ) -> Float[Tensor, "row d_out"]:
        """Return new activations in the place of `y`.

        Args:
            x: what stands at the source of the edit; `y` itself where it has none.
            rows: where they stand.
        """
        ...


@dataclass(frozen=True, slots=True)
class Add:
    """A vector is added: to all activations the same, or to those of each sequence its own."""

    vectors: Float[Tensor, "*place d_out"]

    def apply(
        self, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d"], rows: Rows
    ) -> Float[Tensor, "row d"]:
        vectors = self.vectors.to(y)
        # Adding minus zero changes nothing, not even the sign of a zero.
        return y + rows.own(vectors.masked_fill(vectors == 0, -0.0))


@dataclass(frozen=True, slots=True)
class Put:
    """A value takes the activations' place: one for all, or each sequence and position its own.

    Zeros or a mean ablate; activations of another forward pass patch.
    """

    value: Float[Tensor, "*place d_out"]

    def apply(
        self, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d"], rows: Rows
    ) -> Float[Tensor, "row d"]:
        return rows.own(self.value.to(y)).expand_as(y)


@dataclass(frozen=True, slots=True)
class Splice:
    """What a dictionary makes of the activations at the source takes the activations' place."""

    dictionary: Reconstruction

    def apply(
        self, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"], rows: Rows
    ) -> Float[Tensor, "row d_out"]:
        return self.dictionary(x)
