"""Where rows to train on come from: a cache, a model that runs beside, or one's own tensors."""

from collections.abc import Generator
from typing import Any, Protocol

from torch import Tensor

SAMPLE_ROWS = 16_384
"""Rows that centring, scaling and initial directions are taken from."""

Rows = tuple[Tensor, ...]
"""Raw rows to read (row, d_in); and where others are to be predicted, those (row, d_out)."""


class RowSource(Protocol):
    """Rows in an order of its own. The same source gives the same rows, whoever asks again."""

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the rows and their order, ready for JSON.

        A training goes on from a checkpoint only where this is the same.
        """

    @property
    def metadata(self) -> dict[str, Any]:
        """What a dictionary of these rows says of them: SAELens's keys, ours in `sae_atlas`."""

    def sample(self) -> Rows:
        """At most `SAMPLE_ROWS` training rows, or a few more."""

    def held_out(self, n_rows: int) -> Rows | None:
        """At most about `n_rows` rows that are never trained on; None if there are none."""

    def batches(self, first: int) -> Generator[Rows, None, None]:
        """Endless batches, beginning with number `first` (from 0).

        Raises:
            UserError: if it cannot begin there.
        """

    def save(self, n_batches: int) -> None:
        """Make sure that a later process can begin with batch number `n_batches`.

        Called by whoever takes the batches, after that many of them.
        """

    def forget(self) -> None:
        """Drop what was made sure of and no checkpoint needs any more."""
