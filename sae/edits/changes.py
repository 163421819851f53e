"""Changes of activations. Another kind of change is another class with a method `apply`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.base.errors import require

Reconstruction = Callable[[Tensor], Tensor]
"""A dictionary: activations (row, d_out) from those that it reads, (row, d_in)."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Where rows of activations stand: each one's sequence in the batch, and position there."""

    sequence: Int[Tensor, " row"]
    position: Int[Tensor, " row"]
    """Counted from the start of the sequence."""
    n_sequences: int
    """Of the whole batch."""


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
    """A vector is added: to all sequences the same, or to each its own."""

    vectors: Float[Tensor, " d_out"] | Float[Tensor, "sequence d_out"]

    def apply(
        self, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"], rows: Rows
    ) -> Float[Tensor, "row d_out"]:
        vectors = self.vectors.to(y)
        if vectors.dim() == 2:
            _check(len(vectors), rows)
            vectors = vectors[rows.sequence]
        # Where nothing is added, not even the sign of a zero changes.
        return torch.where(vectors == 0, y, y + vectors)


@dataclass(frozen=True, slots=True)
class Put:
    """A value takes the activations' place: one for all, or one for each sequence and position.

    Zeros or a mean ablate; activations of another forward pass patch.
    """

    value: Float[Tensor, " d_out"] | Float[Tensor, "sequence position d_out"]

    def apply(
        self, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"], rows: Rows
    ) -> Float[Tensor, "row d_out"]:
        value = self.value.to(y)
        if value.dim() == 3:
            _check(len(value), rows)
            value = value[rows.sequence, rows.position]
        return value.expand_as(y)


@dataclass(frozen=True, slots=True)
class Splice:
    """What a dictionary makes of the activations at the source takes their place."""

    dictionary: Reconstruction

    def apply(
        self, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"], rows: Rows
    ) -> Float[Tensor, "row d_out"]:
        return self.dictionary(x)


def _check(n: int, rows: Rows) -> None:
    require(
        n == rows.n_sequences,
        f"an edit has tensors for {n} sequences, but the model is run on {rows.n_sequences}",
    )
