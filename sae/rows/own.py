"""Training rows that a user brings: tensors, in the order that they come in."""

from collections.abc import Generator, Iterable, Iterator
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor

from sae.base import UNKNOWN, UserError, digest_bytes, require, say
from sae.dictionary import Place, Record
from sae.rows.shuffle import Rows
from sae.rows.source import SAMPLE_ROWS

OwnTensors = Iterable[Tensor | tuple[Tensor, Tensor]]
"""Activations (n, d_in) of any n, or pairs of those and of what to predict, (n, d_out)."""

_WANTED = (
    "give tensors (n, d_in) of a floating dtype, or for a transcoder pairs of (n, d_in) and "
    "(n, d_out)"
)


class OwnRows:
    """A `RowSource` over tensors (n, d_in), or pairs (n, d_in) and (n, d_out), of any n.

    Rows are trained on as they come: nothing is mixed, left out or held out. What can be gone
    through again, such as a list or a `DataLoader`, begins again when it ends. An iterator has
    to last for the whole training. To go on with a training the same rows have to come again
    from the first one on: those that were seen are skipped.

    Args:
        rows: the first `SAMPLE_ROWS` of them are read at once, and stay in memory.
        hook_name: where in a model rows come from, if that is known.
        hook_name_out: likewise for the second tensors of pairs.
        batch_size: rows a batch.

    Raises:
        UserError: if there are no such tensors, or fewer rows than a batch.
    """

    def __init__(
        self,
        rows: OwnTensors,
        *,
        hook_name: str | None = None,
        hook_name_out: str | None = None,
        batch_size: int,
    ) -> None:
        self._hook_name, self._hook_name_out = hook_name, hook_name_out
        self._batch_size = batch_size
        self._rows, self._once = rows, iter(rows)
        self._comes_again = self._once is not rows
        self._widths: tuple[int, ...] = ()
        self._first: list[Rows] = []
        n = 0
        while n < max(SAMPLE_ROWS, batch_size):
            found = next(self._once, None)
            if found is None:
                break
            self._first.append(self._checked(found))
            n += len(self._first[-1][0])
        require(
            n >= batch_size,
            f"there are {n:,} rows, less than one batch of train_batch_size_tokens="
            f"{batch_size:,}; give more rows or a smaller batch",
        )
        if self._comes_again:
            # It may be one that holds processes.
            self._once = iter(())
        self._begun = False

    @property
    def identity(self) -> dict[str, object]:
        """What is known of the rows: the first of them."""
        return {
            "rows": f"digest {digest_bytes(map(_bytes, self.sample()))}",
            "widths": list(self._widths),
            "hook_name": self._hook_name,
            "hook_name_out": self._hook_name_out,
            "train_batch_size_tokens": self._batch_size,
        }

    @property
    def places(self) -> tuple[Place, ...]:
        names = (self._hook_name, self._hook_name_out)
        return tuple(name or UNKNOWN for name in names[: len(self._widths)])

    @property
    def record(self) -> Record:
        """Nothing is known of them, but that they are for a transcoder where there are two."""
        return Record(transcoder=len(self._widths) == 2)

    def sample(self) -> Rows:
        """The first rows; they are trained on as well."""
        return tuple(torch.cat(side)[:SAMPLE_ROWS] for side in zip(*self._first, strict=True))

    def held_out(self, n_rows: int) -> Rows | None:
        """None: all rows are trained on."""

    def batches(self, first: int) -> Generator[Rows, None, None]:
        """Endless batches, the rows of those before `first` skipped.

        Raises:
            UserError: if an iterator is to be gone through a second time, or ends.
        """
        require(
            self._comes_again or not self._begun,
            "these rows can be gone through once; give what can be gone through again, such "
            "as a list",
        )
        self._begun = True
        return self._batches(first * self._batch_size)

    def save(self, n_batches: int) -> None:
        """Rows are skipped to go on: nothing to do."""

    def forget(self) -> None:
        """Nothing to do."""

    def _batches(self, skip: int) -> Generator[Rows, None, None]:
        size, rest, n, given = self._batch_size, [], 0, skip
        for rows in self._blocks():
            if skip >= len(rows[0]):
                skip -= len(rows[0])
                continue
            rest.append(tuple(x[skip:] for x in rows))
            n += len(rest[-1][0])
            skip = 0
            if n < size:
                continue
            together = tuple(map(torch.cat, zip(*rest, strict=True)))
            for at in range(0, n - size + 1, size):
                given += size
                yield tuple(x[at : at + size] for x in together)
            n %= size
            rest = [tuple(x[len(x) - n :] for x in together)]
        there = given - skip + n
        raise UserError(
            f"the rows ended after {there:,}, and training needs {given + size:,} and perhaps "
            "more; give more of them, lower training_tokens, or give what can be gone through "
            "again, such as a list"
        )

    def _blocks(self) -> Iterator[Rows]:
        """Checked tensors; endless where they come again."""
        if not self._comes_again:
            yield from chain(self._first, map(self._checked, self._once))
            return
        for reading in count():
            n = 0
            for rows in map(self._checked, self._rows):
                n += len(rows[0])
                yield rows
            if n == 0:
                return
            if reading == 0:
                say(f"train: the {n:,} rows have ended, and begin again")

    def _checked(self, found: Any) -> Rows:
        rows = tuple(found) if isinstance(found, tuple | list) else (found,)
        if not all(isinstance(x, Tensor) for x in rows):
            kinds = ", ".join(type(x).__name__ for x in rows)
            raise UserError(f"rows hold {kinds}; {_WANTED}")
        said = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in rows) or "nothing"
        require(
            1 <= len(rows) <= 2
            and all(x.dim() == 2 and x.is_floating_point() for x in rows)
            and len(rows[0]) == len(rows[-1]),
            f"rows hold {said}; {_WANTED}",
        )
        require(
            self._hook_name_out is None or len(rows) == 2,
            f"rows hold {said}, and hook_name_out={self._hook_name_out} asks for a "
            f"transcoder; {_WANTED}",
        )
        widths = tuple(x.shape[1] for x in rows)
        self._widths = self._widths or widths
        require(
            widths == self._widths,
            f"rows hold {said} after others of width {self._widths}; give all of one width",
        )
        return tuple(x.detach() for x in rows)


def _bytes(x: Tensor) -> bytes:
    return x.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
