"""Training rows of a cache, shuffled."""

from collections.abc import Generator
from functools import cached_property

import torch

from sae.base import require
from sae.cache.layout import ActivationCache
from sae.dictionary import Place, Record
from sae.rows.shuffle import Rows, RowSelection, rows_in_order, select_rows, shuffled_batches
from sae.rows.source import SAMPLE_ROWS, record_of_rows


class CachedRows:
    """A `RowSource` over one hook of a cache, or two for a transcoder.

    Args:
        max_norm_multiple: rows above this multiple of the median norm are left out.
        seed: of the order.

    Raises:
        UserError: if the cache does not hold these hooks, or fewer rows than a batch.
    """

    def __init__(
        self,
        cache: ActivationCache,
        hook_name: str | None,
        hook_name_out: str | None,
        *,
        batch_size: int,
        max_norm_multiple: float | None,
        seed: int,
    ) -> None:
        self.cache = cache
        self.hook_name, self.hook_name_out = _hooks(cache, hook_name, hook_name_out)
        self._batch_size = batch_size
        self._max_norm_multiple = max_norm_multiple
        self._seed = seed
        self._rows = self._selected(held_out=False)
        require(
            batch_size <= self._rows.n_rows,
            f"train_batch_size_tokens={batch_size} is larger than the cache, which has "
            f"{self._rows.n_rows} rows to train on",
        )

    @property
    def identity(self) -> dict[str, object]:
        return {
            "cache": f"digest {self.cache.digest}",
            "hook_name": self.hook_name,
            "hook_name_out": self.hook_name_out,
            "max_norm_multiple": self._max_norm_multiple,
            "train_batch_size_tokens": self._batch_size,
            "shuffle_seed": self._seed,
        }

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(map(self.cache.site, filter(None, (self.hook_name, self.hook_name_out))))

    @property
    def record(self) -> Record:
        cache, bos = self.cache, self.cache.bos_token_id
        return record_of_rows(cache.model, cache.text, cache.context_size, bos, cache.digest)

    def sample(self) -> Rows:
        return self._sample

    @cached_property
    def _sample(self) -> Rows:
        # Spread over all chunks, so all are read; every turn of a sweep asks for it.
        return self._together(held_out=False, limit=SAMPLE_ROWS)

    def held_out(self, n_rows: int) -> Rows | None:
        return self._together(held_out=True, limit=n_rows) or None

    def batches(self, first: int) -> Generator[Rows, None, None]:
        yield from shuffled_batches(self._rows, self._batch_size, seed=self._seed, skip=first)

    def save(self, n_batches: int) -> None:
        """A cache stays: nothing to do."""

    def forget(self) -> None:
        """Nothing to do."""

    def _together(self, *, held_out: bool, limit: int) -> Rows:
        parts = rows_in_order(self._selected(held_out=held_out), limit)
        return tuple(torch.cat(sides) for sides in zip(*parts, strict=True))

    def _selected(self, *, held_out: bool) -> RowSelection:
        return select_rows(
            self.cache,
            *filter(None, (self.hook_name, self.hook_name_out)),
            held_out=held_out,
            max_norm_multiple=self._max_norm_multiple,
        )


def _hooks(
    cache: ActivationCache, hook_name: str | None, hook_name_out: str | None
) -> tuple[str, str | None]:
    """The hook to read, and for a transcoder the one to predict."""
    if hook_name_out is None:
        return cache.hook(hook_name), None
    require(
        hook_name is not None,
        f"hook_name_out={hook_name_out} needs hook_name=..., the hook to read",
    )
    found, output = cache.hook(hook_name), cache.hook(hook_name_out)
    require(
        found != output,
        f"hook_name_out={output} is hook_name itself; leave it out to train an autoencoder",
    )
    return found, output
