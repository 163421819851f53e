"""Training rows that a user brings: tensors, in the order that they come in."""

from collections.abc import Generator, Iterable, Iterator
from itertools import chain, count, repeat
from typing import Any

import torch
from torch import Tensor

from sae.base import UNKNOWN, UserError, digest_bytes, require, say
from sae.dictionary import Record
from sae.rows.shuffle import Rows, cut_batches, first_parts, joined
from sae.rows.source import SAMPLE_ROWS, Asked, RowSource

OwnTensors = Iterable[Tensor | tuple[Tensor, Tensor]]
"""Activations (n, d_in) of any n, or pairs of those and of what to predict, (n, d_out)."""

_WANTED = (
    "give tensors (n, d_in) of a floating dtype, or for a transcoder pairs of (n, d_in) and "
    "(n, d_out)"
)


class OwnRows(RowSource):
    """Rows of tensors (n, d_in), or of pairs (n, d_in) and (n, d_out), of any n.

    Rows are trained on as they come: nothing is mixed, left out or held out. What can be gone
    through again, such as a list or a `DataLoader`, begins again when it ends; an iterator has
    to last for the whole training. To go on with one, the same rows have to come from the first
    one on. The first `SAMPLE_ROWS` are read at once, and stay in memory.

    Raises:
        UserError: if there are no such tensors, or fewer rows than a batch.
    """

    def __init__(self, rows: OwnTensors, asked: Asked) -> None:
        self._asked, batch_size = asked, asked.batch_size
        self._widths: tuple[int, ...] = ()
        once = iter(rows)
        checked = map(self._checked, once)
        first = first_parts(checked, max(SAMPLE_ROWS, batch_size))
        n = sum(len(x) for x, *_ in first)
        require(
            n >= batch_size,
            f"there are {n:,} rows, less than one batch of train_batch_size_tokens="
            f"{batch_size:,}; give more rows or a smaller batch",
        )
        # Of what comes again the iterator is let go: it may be one that holds processes.
        self._again = None if once is rows else rows
        self._once = chain(first, checked) if once is rows else None
        self._sample = tuple(x[:SAMPLE_ROWS] for x in joined(first))
        content = (
            x.cpu().contiguous().view(torch.uint8).numpy().tobytes() for x in self._sample
        )
        self.identity = {
            "rows": f"digest {digest_bytes(content)}",
            "widths": list(self._widths),
            "hook_name": asked.hook_name,
            "hook_name_out": asked.hook_name_out,
            "train_batch_size_tokens": batch_size,
        }
        names = (asked.hook_name, asked.hook_name_out)
        self.places = tuple(name or UNKNOWN for name in names[: len(self._widths)])
        self.record = Record(transcoder=len(self._widths) == 2, max_norm_multiple=None)

    def sample(self) -> Rows:
        return self._sample

    def held_out(self, n_rows: int) -> None:
        """Give none: all rows are trained on."""

    def batches(self, first: int) -> Generator[Rows, None, None]:
        """Give endless batches from number `first` on; an iterator that ends is refused."""
        blocks = self._once if self._again is None else self._endless(self._again)
        self._once = None
        if blocks is None:
            raise UserError(
                "these rows can be read only once; give something that can be read again, "
                "such as a list"
            )
        return self._batches(blocks, first)

    def _batches(self, blocks: Iterator[Rows], first: int) -> Generator[Rows, None, None]:
        size, there = self._asked.batch_size, 0

        def parts() -> Iterator[tuple[Rows, Tensor]]:
            nonlocal there
            for rows in blocks:
                yield rows, torch.arange(len(rows[0]))[max(0, first * size - there) :]
                there += len(rows[0])

        yield from cut_batches(parts(), repeat(size))
        needed = max(first + 1, there // size + 1) * size
        raise UserError(
            f"the rows ended after {there:,}, and training needs {needed:,} and perhaps more; "
            "give more of them, lower training_tokens, or give what can be gone through "
            "again, such as a list"
        )

    def _endless(self, given: OwnTensors) -> Iterator[Rows]:
        for reading in count():
            n = 0
            for rows in map(self._checked, given):
                n += len(rows[0])
                yield rows
            if n == 0:
                return
            if reading == 0:
                say(f"train: the {n:,} rows have all been used, and are read again")

    def _checked(self, found: Any) -> Rows:
        rows = tuple(found) if isinstance(found, tuple | list) else (found,)
        if not all(isinstance(x, Tensor) for x in rows):
            kinds = ", ".join(type(x).__name__ for x in rows)
            raise UserError(f"rows hold {kinds}; {_WANTED}")
        said = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in rows) or "nothing"
        require(
            all(x.layout == torch.strided for x in rows),
            f"rows hold sparse tensors; {_WANTED}, made dense with to_dense()",
        )
        require(
            1 <= len(rows) <= 2
            and all(x.dim() == 2 and x.is_floating_point() for x in rows)
            and len(rows[0]) == len(rows[-1]),
            f"rows hold {said}; {_WANTED}",
        )
        out = self._asked.hook_name_out
        require(
            out is None or len(rows) == 2,
            f"rows hold {said}, and hook_name_out={out} asks for a transcoder; {_WANTED}",
        )
        widths = tuple(x.shape[1] for x in rows)
        self._widths = self._widths or widths
        require(
            widths == self._widths,
            f"rows hold {said} after others of width {self._widths}; give all of one width",
        )
        return tuple(x.detach() for x in rows)
