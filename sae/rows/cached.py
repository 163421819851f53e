"""Training rows of a cache, shuffled."""

from collections.abc import Generator
from functools import cached_property, partial

from sae.cache.layout import ActivationCache
from sae.rows.shuffle import Rows, joined, rows_in_order, select_rows, shuffled_batches
from sae.rows.source import SAMPLE_ROWS, RowSource, hooks_asked, record_of_rows


class CachedRows(RowSource):
    """Rows at one hook of a cache, or at two for a transcoder.

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
        names = hooks_asked(hook_name, hook_name_out, cache.hook)
        self._select = partial(select_rows, cache, *names, max_norm_multiple=max_norm_multiple)
        self._rows = self._select(held_out=False)
        self._rows.check_batch(batch_size)
        self._batch_size, self._seed = batch_size, seed
        self.identity = {
            "cache": f"digest {cache.digest}",
            "hook_name": names[0],
            "hook_name_out": names[1] if names[1:] else None,
            "max_norm_multiple": max_norm_multiple,
            "train_batch_size_tokens": batch_size,
            "shuffle_seed": seed,
        }
        self.places = tuple(map(cache.site, names))
        self.record = record_of_rows(
            cache.model, cache.text, cache.context_size, cache.bos_token_id, cache.digest
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
        yield from shuffled_batches(self._rows, self._batch_size, seed=self._seed, skip=first)
