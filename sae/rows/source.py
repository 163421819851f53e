"""Where rows to train on come from: a cache, a model that runs beside, or one's own tensors."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cached_property, partial

from sae.base import require
from sae.cache.layout import ActivationCache
from sae.dictionary import Place, Record
from sae.models import ModelRecord
from sae.rows.shuffle import (
    POOL_BYTES,
    Rows,
    joined,
    rows_in_order,
    select_rows,
    shuffled_batches,
)
from sae.text.record import TextRecord

SAMPLE_ROWS = 16_384
"""Rows that centring, scaling and initial directions are taken from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a training asks of its rows."""

    hook_name: str | None = None
    """Hook at which rows are read; None for the only hook there is."""
    hook_name_out: str | None = None
    """Hook at which the rows that a transcoder predicts are read."""
    batch_size: int
    max_norm_multiple: float | None = None
    """Rows above this multiple of the median norm are left out; None keeps all."""
    seed: int = 0
    """Decides the order."""

    def hooks(self, find: Callable[[str | None], str]) -> tuple[str, ...]:
        """Return the names of the hook to read and, for a transcoder, of the one to predict.

        `find` gives the name of a hook that is asked for, and for None that of the only one.
        """
        if self.hook_name_out is None:
            return (find(self.hook_name),)
        require(
            self.hook_name is not None,
            f"hook_name_out={self.hook_name_out} needs hook_name=..., the hook to read",
        )
        names = find(self.hook_name), find(self.hook_name_out)
        require(
            names[0] != names[1],
            f"hook_name_out={names[1]} is hook_name itself; leave it out to train an "
            "autoencoder",
        )
        return names


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
    buffer_bytes: int = 0
    """About how much memory rows will take that wait to be trained on."""

    @abstractmethod
    def sample(self) -> Rows:
        """Return at most `SAMPLE_ROWS` training rows, or a few more."""

    @abstractmethod
    def held_out(self, n_rows: int) -> Rows | None:
        """Return about `n_rows` rows at most that are never trained on; None without any."""

    @abstractmethod
    def batches(self, first: int) -> Generator[Rows, None, None]:
        """Give endless batches, beginning with number `first` (from 0), if possible."""

    def save(self, n_batches: int) -> None:
        """Make sure, after so many batches, that a later process can begin with the next."""
        return

    def forget(self) -> None:
        """Drop what was made sure of and no checkpoint needs any more."""
        return


def record_of_rows(
    model: ModelRecord,
    text: TextRecord,
    context_size: int,
    bos_token_id: int | None,
    cache_digest: str | None,
    max_norm_multiple: float | None,
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
        max_norm_multiple=max_norm_multiple,
    )


class CachedRows(RowSource):
    """Training rows at one hook of a cache, or at two for a transcoder, shuffled.

    Raises:
        UserError: if the cache does not hold these hooks, or fewer rows than a batch.
    """

    def __init__(self, cache: ActivationCache, asked: Asked) -> None:
        self._asked, names, limit = asked, asked.hooks(cache.hook), asked.max_norm_multiple
        self._select = partial(select_rows, cache, *names, max_norm_multiple=limit)
        self._rows = self._select(held_out=False)
        self._rows.check_batch(asked.batch_size)
        self.buffer_bytes = min(POOL_BYTES, self._rows.n_bytes)
        self.identity = {
            "cache": f"digest {cache.digest}",
            "hook_name": names[0],
            "hook_name_out": names[1] if names[1:] else None,
            "max_norm_multiple": limit,
            "train_batch_size_tokens": asked.batch_size,
            "shuffle_seed": asked.seed,
        }
        self.places = tuple(map(cache.site, names))
        self.record = record_of_rows(
            cache.model,
            cache.text,
            cache.context_size,
            cache.bos_token_id,
            cache.digest,
            limit,
        )

    def sample(self) -> Rows:
        return self._sample

    @cached_property
    def _sample(self) -> Rows:
        # Spread over all chunks, so all are read; every turn of a sweep asks for it.
        return joined(rows_in_order(self._rows, SAMPLE_ROWS))

    def held_out(self, n_rows: int) -> Rows | None:
        return joined(rows_in_order(self._select(held_out=True), n_rows)) or None

    def batches(self, first: int) -> Generator[Rows, None, None]:
        size, seed = self._asked.batch_size, self._asked.seed
        yield from shuffled_batches(self._rows, size, seed=seed, skip=first)
