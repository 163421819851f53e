"""Rows that come in an order of their own, drawn at random out of a bounded number of them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.base import require
from sae.rows.shuffle import Rows


class MixingBuffer:
    """Holds some rows, and gives batches drawn from them; those that follow take their place.

    Every row is given exactly once. Which batch it comes in is decided by the seed and the
    order of the rows alone, not by the blocks that they come in or by when these come.

    Args:
        capacity: rows that are held, of each hook.
        seed: of the draws.
    """

    def __init__(self, capacity: int, seed: int) -> None:
        self.capacity = capacity
        self.n_taken = 0
        """Rows that it took from its source so far."""
        self._generator = torch.Generator().manual_seed(seed)
        self._held: Rows | None = None
        self._free = torch.arange(capacity)
        """Slots whose rows were given, in the order in which they are filled."""
        self._rest: Rows | None = None
        """What is left of the last block."""

    def batch(self, blocks: Iterator[Rows], size: int) -> Rows:
        """Return random rows of those held, after the slots of the batch before are filled.

        Args:
            blocks: endless; rows of one hook or of more, as many of each. It goes on from
                block to block, and where it stopped in the last one is kept here.
            size: rows of the batch, at most the capacity.
        """
        while len(self._free):
            rows = next(blocks) if self._rest is None else self._rest
            if self._held is None:
                self._held = tuple(x.new_empty((self.capacity, *x.shape[1:])) for x in rows)
            n = min(len(self._free), len(rows[0]))
            for held, x in zip(self._held, rows, strict=True):
                held[self._free[:n]] = x[:n]
            self._free = self._free[n:]
            self.n_taken += n
            # Copied, so that a view does not keep the whole block.
            self._rest = tuple(x[n:].clone() for x in rows) if n < len(rows[0]) else None
        assert self._held is not None
        self._free = self._draw(size)
        return tuple(held.index_select(0, self._free) for held in self._held)

    def state_dict(self) -> dict[str, Any]:
        """Return all there is; write it before the next batch, which changes the same rows."""
        return {
            "held": self._held,
            "free": self._free,
            "rest": self._rest,
            "n_taken": self.n_taken,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned: with the block after the last one taken."""
        self._held, self._free, self._rest = state["held"], state["free"], state["rest"]
        self.n_taken = state["n_taken"]
        self._generator.set_state(state["generator"])

    def _draw(self, size: int) -> Tensor:
        """Different slots: uniform, in time that does not grow with the capacity."""
        require(
            size <= self.capacity,
            f"a batch of {size} rows is more than the {self.capacity} rows held",
        )
        if 2 * size > self.capacity:
            return torch.randperm(self.capacity, generator=self._generator)[:size]
        found = np.zeros(0, dtype=np.int64)
        while len(found) < size:
            more = torch.randint(self.capacity, (2 * size,), generator=self._generator)
            drawn = np.concatenate([found, more.numpy()])
            # The first so many different ones of a sequence of draws.
            _, first = np.unique(drawn, return_index=True)
            found = drawn[np.sort(first)]
        return torch.from_numpy(found[:size])
