"""Rows of a cache as a PyTorch data set, for a training loop of one's own."""

from collections.abc import Iterator
from dataclasses import KW_ONLY, InitVar, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from sae.base import require, require_at_least
from sae.cache.layout import ActivationCache, open_cache
from sae.core.scaling import SINK_NORM_MULTIPLE
from sae.rows.shuffle import Rows, RowSelection, batches_of_epochs, select_rows


@dataclass(eq=False)
class ActivationDataset(IterableDataset[Any]):
    """Shuffled batches of the rows of a cache, with every selected row once in an epoch.

    It yields float32 tensors of shape (batch, d_in), or pairs of them if a second hook is
    given. The last batch of an epoch may be smaller. Give the data set to `DataLoader(dataset,
    batch_size=None)`. With `num_workers` each worker reads chunks of its own, and the number of
    batches does not grow. Which rows make a batch depends on `seed` and on the number of
    workers.

    Every iteration gives the same batches again. For several epochs, each in another order, set
    `epochs` and iterate once.

    Raises:
        UserError: when it is made, for an impossible value, a hook that is not in the cache,
            no such rows, or damaged text or norms; when it is read, for damaged activations.
    """

    cache: InitVar[ActivationCache | str | Path]
    """Opened, or where it is. It is opened again by whoever reads, in a worker or here."""
    hook_name: str | None = None
    """May be left out if there is only one."""
    _: KW_ONLY
    batch_size: int
    """Rows a batch."""
    hook_name_out: str | None = None
    """A second hook; the same rows at both are given then."""
    held_out: bool = False
    """Whether the held-out rows are read, and not those for training."""
    epochs: int = 1
    """How often all rows come in one iteration."""
    seed: int = 0
    """Decides the order."""
    skip: int = 0
    """Batches to leave out at the start without reading them, as a run that goes on does."""
    max_norm_multiple: float | None = SINK_NORM_MULTIPLE
    """Rows whose norm exceeds this multiple of the training rows' median are left out, as
    attention sinks; None keeps them."""
    pool_bytes: int = 2 << 30
    """Memory for rows that are shuffled together, of all workers."""
    location: str = field(init=False)
    """Where the cache is."""
    keep: NDArray[np.bool_] = field(init=False, repr=False)
    """Which rows are read, (sequence, position)."""
    n_rows: int = field(init=False)
    """Rows an epoch."""

    def __post_init__(self, cache: ActivationCache | str | Path) -> None:
        require_at_least(self, batch_size=1, epochs=1, seed=0, skip=0)
        if not isinstance(cache, ActivationCache):
            cache = open_cache(cache)
        self.location = cache.location
        names = (self.hook_name, self.hook_name_out)[: 1 if self.hook_name_out is None else 2]
        limit = self.max_norm_multiple
        selection = select_rows(cache, *names, held_out=self.held_out, max_norm_multiple=limit)
        self._hook_names = selection.hook_names
        self.hook_name, self.hook_name_out, *_ = *self._hook_names, None
        self.keep, self.n_rows = selection.keep, selection.n_rows
        require(
            self.n_rows > 0,
            f"{self.location} has no rows at {self.hook_name} with held_out={self.held_out}",
        )

    @property
    def batches_an_epoch(self) -> int:
        """How many batches hold all rows."""
        return -(-self.n_rows // self.batch_size)

    def __len__(self) -> int:
        """How many batches an iteration gives, of all epochs and without the skipped ones."""
        return max(0, self.epochs * self.batches_an_epoch - self.skip)

    def __iter__(self) -> Iterator[Tensor | Rows]:
        worker = get_worker_info()
        n = 1 if worker is None else worker.num_workers
        # Loaders take one batch from each worker in turn, from the first one first. So every
        # `n`-th of all batches is one worker's, and epochs come one after the other; which
        # worker's they are moves on with what is skipped, for the same batches to come then.
        own = 0 if worker is None else (worker.id + self.skip) % n
        selection = RowSelection(open_cache(self.location), self._hook_names, self.keep)
        found = batches_of_epochs(
            (self._share(selection, epoch, own, n) for epoch in range(self.epochs)),
            (size for epoch in range(self.epochs) for size in self._sizes(epoch, own, n)),
            seed=self.seed,
            skip=len(range(own, self.skip, n)),
            pool_bytes=self.pool_bytes // n,
        )
        for batch in found:
            rows = tuple(x.float() for x in batch)
            yield rows if rows[1:] else rows[0]

    def _sizes(self, epoch: int, own: int, n: int) -> list[int]:
        """Rows of each of an epoch's batches that is the `own`-th of `n` workers'."""
        many = self.batches_an_epoch
        mine = range((own - epoch * many) % n, many, n)
        return [min(self.batch_size, self.n_rows - i * self.batch_size) for i in mine]

    def _share(self, selection: RowSelection, epoch: int, own: int, n: int) -> RowSelection:
        """Return the rows of an epoch of the `own`-th of `n` workers: those of random chunks.

        They are as many as its batches hold, so two workers may share a chunk.
        """
        if n == 1:
            return selection
        counts = [sum(self._sizes(epoch, worker, n)) for worker in range(n)]
        first, end = sum(counts[:own]), sum(counts[: own + 1])
        chunks = selection.chunks
        keep = np.zeros_like(selection.keep)
        for i in np.random.default_rng([self.seed, epoch]).permutation(len(chunks)):
            rows = selection.kept(chunks[i])
            keep[chunks[i]].reshape(-1)[rows[max(0, first) : max(0, end)]] = True
            first, end = first - len(rows), end - len(rows)
        return RowSelection(selection.cache, selection.hook_names, keep)
