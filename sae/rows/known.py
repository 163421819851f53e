"""Rows of a world whose features are known: drawn as they are asked for, and kept nowhere."""

from collections.abc import Generator, Iterator
from itertools import count, islice, repeat

import torch
from torch import Tensor

from sae.base import UNKNOWN, plain
from sae.dictionary import Record
from sae.rows.shuffle import Rows, cut_batches
from sae.rows.source import SAMPLE_ROWS, RowSource
from sae.synthetic import BLOCK_ROWS, HELD_OUT, TRAINING, World


class KnownRows(RowSource):
    """Rows of a world, new ones in every batch; any batch can be the first."""

    def __init__(self, world: World, batch_size: int) -> None:
        self._world, self._batch_size = world, batch_size
        self.identity = {
            "world": plain(world.config),
            "train_batch_size_tokens": batch_size,
        }
        self.places = (UNKNOWN,)
        self.record = Record(max_norm_multiple=None)

    def sample(self) -> Rows:
        return (self._first(TRAINING, SAMPLE_ROWS),)

    def held_out(self, n_rows: int) -> Rows:
        return (self._first(HELD_OUT, n_rows)[:n_rows],)

    def batches(self, first: int) -> Generator[Rows, None, None]:
        begin, skipped = divmod(first * self._batch_size, BLOCK_ROWS)

        def parts() -> Iterator[tuple[Rows, Tensor]]:
            for number in count(begin):
                kept = torch.arange(skipped if number == begin else 0, BLOCK_ROWS)
                yield (self._world.block(TRAINING, number).x,), kept

        yield from cut_batches(parts(), repeat(self._batch_size))

    def _first(self, stream: int, n_rows: int) -> Tensor:
        n_blocks = -(-n_rows // BLOCK_ROWS)
        return torch.cat([block.x for block in islice(self._world.blocks(stream), n_blocks)])
