"""Worlds: rows of activations whose features are known, as many as anybody asks for."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.core import Vectors
from sae.synthetic.config import WorldConfig

BLOCK_ROWS = 1024
"""Rows that are drawn together. Row i of a stream is the same, however many are asked for."""
TRAINING, HELD_OUT = 0, 1
"""Streams of rows that are independent of each other."""


class Codes(NamedTuple):
    """Which features fire in which rows and how strongly: sparse, in order of rows."""

    row_ends: Int[Tensor, " row_plus_1"]
    """Entries of row i are `row_ends[i]` up to `row_ends[i + 1]`."""
    features: Int[Tensor, " entry"]
    values: Float[Tensor, " entry"]
    """All above zero."""
    n_features: int

    def dense(self) -> Float[Tensor, "row feature"]:
        """Return the activation of every true feature in every row."""
        n_rows = len(self.row_ends) - 1
        rows = torch.arange(n_rows).repeat_interleave(self.row_ends.diff())
        found = torch.zeros(n_rows, self.n_features)
        found[rows, self.features.long()] = self.values
        return found


class Block(NamedTuple):
    """Rows with the truth about them."""

    x: Vectors
    codes: Codes


class World(ABC):
    """True features with their directions, and streams of rows made of them."""

    config: WorldConfig
    directions: Float[Tensor, "feature d_in"]
    """Directions of the features, each of norm one."""
    bias: Float[Tensor, " d_in"]

    @abstractmethod
    def block(self, stream: int, number: int) -> Block:
        """Return `BLOCK_ROWS` rows; the same number of a stream always gives the same."""

    def blocks(self, stream: int, first: int = 0) -> Iterator[Block]:
        """Give the blocks of a stream without end, from number `first` on."""
        while True:
            yield self.block(stream, first)
            first += 1
