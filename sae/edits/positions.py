"""Positions in sequences of tokens, counted from their start: which of them an edit touches."""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool
from torch import Tensor

from sae.base import require


@dataclass(frozen=True, slots=True)
class Window:
    """What one forward pass computes of a batch of sequences: positions `start` to `end`.

    While a model writes with a key-value cache, the first forward has the whole prompt, say
    positions 0 to 9, and the following ones 9 to 10, 10 to 11, ...
    """

    n_sequences: int
    start: int
    end: int


class Positions(Protocol):
    """A choice of positions."""

    def mask(self, window: Window) -> Bool[Tensor, "sequence position"]:
        """Return which of the positions in `window` are chosen, in each sequence."""
        ...


@dataclass(frozen=True, slots=True)
class From:
    """All positions from one on."""

    first: int

    def mask(self, window: Window) -> Bool[Tensor, "sequence position"]:
        at = torch.arange(window.start, window.end)
        return (at >= self.first).expand(window.n_sequences, -1)


ALL = From(0)
ALL_BUT_FIRST = From(1)
"""The first position holds the token that begins a text: no feature is trained on it, and
models use it as a sink for attention."""


@dataclass(frozen=True, slots=True)
class Last:
    """The last position of each forward pass: the one from which the next token is predicted.

    While a model writes with a key-value cache, that is each new position in its turn.
    """

    def mask(self, window: Window) -> Bool[Tensor, "sequence position"]:
        at = torch.arange(window.start, window.end)
        return (at == window.end - 1).expand(window.n_sequences, -1)


@dataclass(frozen=True, slots=True)
class Where:
    """The positions at which a mask is true.

    It says which tokens are text, for example, or where the text begins in sequences that are
    padded on the left.
    """

    chosen: Bool[Tensor, "sequence position"]

    def mask(self, window: Window) -> Bool[Tensor, "sequence position"]:
        n_sequences, n_positions = self.chosen.shape
        require(
            n_sequences == window.n_sequences and window.end <= n_positions,
            f"the mask of an edit has {n_sequences} sequences of {n_positions} positions, but "
            f"the model is run on {window.n_sequences} of {window.end}; give one that covers "
            "them, tokens still to be written included",
        )
        return self.chosen[:, window.start : window.end]
