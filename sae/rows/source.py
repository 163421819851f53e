"""Where rows to train on come from: a cache, a model that runs beside, or one's own tensors."""

from collections.abc import Generator
from typing import Protocol

from sae.dictionary import Place, Record
from sae.models import ModelRecord
from sae.rows.shuffle import Rows
from sae.text.record import TextRecord

SAMPLE_ROWS = 16_384
"""Rows that centring, scaling and initial directions are taken from."""


class RowSource(Protocol):
    """Rows in an order of its own. The same source gives the same rows, whoever asks again."""

    @property
    def identity(self) -> dict[str, object]:
        """What decides the rows and their order, ready for JSON.

        A training goes on from a checkpoint only where this is the same.
        """

    @property
    def places(self) -> tuple[Place, ...]:
        """Where rows are read; and where others are to be predicted, where those are from."""

    @property
    def record(self) -> Record:
        """What a dictionary of these rows says of where they come from."""

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


def record_of_rows(
    model: ModelRecord,
    text: TextRecord,
    context_size: int,
    bos_token_id: int | None,
    cache_digest: str | None,
) -> Record:
    """Return the record of rows that a model has computed from a text."""
    return Record(
        model_name=model.hub_id,
        model=model,
        context_size=context_size,
        prepend_bos=bos_token_id is not None,
        bos_token_id=bos_token_id,
        exclude_special_tokens=True,
        dataset_path=text.name,
        text=text,
        cache_digest=cache_digest,
    )
