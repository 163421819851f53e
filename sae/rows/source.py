"""Where rows to train on come from: a cache, a model that runs beside, or one's own tensors."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator

from sae.base import require
from sae.dictionary import Place, Record
from sae.models import ModelRecord
from sae.rows.shuffle import Rows
from sae.text.record import TextRecord

SAMPLE_ROWS = 16_384
"""Rows that centring, scaling and initial directions are taken from."""


class RowSource(ABC):
    """Rows in an order of its own. The same source gives the same rows, whoever asks again."""

    identity: dict[str, object]
    """What decides the rows and their order, ready for JSON.

    A training goes on from a checkpoint only where this is the same.
    """
    places: tuple[Place, ...]
    """Where rows are read; and where others are to be predicted, where those are from."""
    record: Record
    """What a dictionary of these rows says of where they come from."""

    @abstractmethod
    def sample(self) -> Rows:
        """Return at most `SAMPLE_ROWS` training rows, or a few more."""

    @abstractmethod
    def held_out(self, n_rows: int) -> Rows | None:
        """Return about `n_rows` rows at most that are never trained on; None without any."""

    @abstractmethod
    def batches(self, first: int) -> Generator[Rows, None, None]:
        """Give endless batches, beginning with number `first` (from 0).

        Raises:
            UserError: if it cannot begin there.
        """

    def save(self, n_batches: int) -> None:
        """Make sure that a later process can begin with batch number `n_batches`.

        Called by whoever takes the batches, after that many of them. Most can begin anywhere.
        """
        return

    def forget(self) -> None:
        """Drop what was made sure of and no checkpoint needs any more."""
        return


def hooks_asked(
    hook_name: str | None, hook_name_out: str | None, find: Callable[[str | None], str]
) -> tuple[str, ...]:
    """Return the name of the hook to read, and for a transcoder that of the one to predict.

    Args:
        find: the name of a hook that was asked for, and without a name of the only one.

    Raises:
        UserError: if a hook to predict is asked for without another one to read.
    """
    if hook_name_out is None:
        return (find(hook_name),)
    require(
        hook_name is not None,
        f"hook_name_out={hook_name_out} needs hook_name=..., the hook to read",
    )
    names = find(hook_name), find(hook_name_out)
    require(
        names[0] != names[1],
        f"hook_name_out={names[1]} is hook_name itself; leave it out to train an autoencoder",
    )
    return names


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
