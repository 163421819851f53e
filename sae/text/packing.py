"""Documents to rows of tokens: streamed in, each document on one side of the split."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sae.base import UserError, require
from sae.text.rows import Unreadable

ROWS_A_BLOCK = 1024
NO_DOCUMENT = -1
"""Owner of a position that only fills up a row."""

Document = tuple[int, NDArray[np.int32]]
"""A document's digest and its token ids, without the tokens around it, if they are text."""


@dataclass(frozen=True, slots=True)
class TextPlan:
    """How many rows a text is to fill: first those for training, then the held-out ones."""

    n_training: int
    n_held_out: int
    context_size: int

    @property
    def n_sequences(self) -> int:
        """Rows of both sides."""
        return self.n_training + self.n_held_out

    @classmethod
    def of(cls, n_tokens: int, context_size: int, held_out_fraction: float) -> "TextPlan":
        """About `n_tokens`, and at least one row on each side."""
        n_rows = max(2, round(n_tokens / context_size))
        n_held_out = min(n_rows - 1, max(1, round(n_rows * held_out_fraction)))
        return cls(n_rows - n_held_out, n_held_out, context_size)


@dataclass(frozen=True, slots=True)
class Marks:
    """Tokens that stand around documents; none where a model has no such tokens."""

    begin: tuple[int, ...] = ()
    """Before every document, and at the start of every row."""
    end: tuple[int, ...] = ()
    """After every document."""
    pad: int = 0
    """Behind the text of a row that it does not fill; belongs to no document."""


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Some finished rows of one side, in order."""

    held_out: bool
    tokens: NDArray[np.int32]
    """(row, position)."""
    documents: NDArray[np.int32]
    """(row, position): index of the document in the order of arrival; −1 where none is."""


@dataclass(slots=True)
class TextCounts:
    """What became of every document that was read; complete once the rows are."""

    used: int = 0
    repeated: int = 0
    """Left out because the same text came before."""
    empty: int = 0
    unneeded: int = 0
    """Left out because the rows of their side were full already."""
    tokens_cut: int = 0
    """Tokens of the last documents that found no room."""
    unreadable: int = 0
    """Rows and documents that were passed over because they could not be read."""
    first_unreadable: str = ""
    """Why the first of them could not be."""
    _digests: "array[int]" = field(default_factory=lambda: array("Q"))

    def digests(self) -> NDArray[np.uint64]:
        """Digest of each document used, (document,)."""
        return np.array(self._digests, dtype=np.uint64)

    def summary(self) -> dict[str, int]:
        """Return the counts by name."""
        names = ("used", "repeated", "empty", "unneeded", "tokens_cut")
        # Said only of texts that were to be read in spite of it.
        more = {"unreadable": self.unreadable} if self.unreadable else {}
        return {name: getattr(self, name) for name in names} | more

    def count(self, digest: int) -> int:
        """Enter a document that is used; its index."""
        self._digests.append(digest)
        self.used += 1
        return self.used - 1

    @property
    def said_unreadable(self) -> str:
        """How many could not be read, and why the first, to end a sentence; may be empty."""
        if not self.unreadable:
            return ""
        return (
            f"; {self.unreadable:,} unreadable were passed over, first {self.first_unreadable}"
        )

    def pass_over(self, document: Unreadable) -> None:
        """Enter something that could not be read."""
        self.unreadable += 1
        self.first_unreadable = self.first_unreadable or document.reason


def document_digest(text: str) -> int:
    """Return the first eight bytes of the SHA-256 of `text`, as an unsigned number."""
    return _digest(text.encode("utf-8", "replace"))


def tokens_digest(ids: NDArray[np.int32]) -> int:
    """Return what `document_digest` is of a text, of tokens that came without one."""
    return _digest(ids.astype("<i4").tobytes())


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")


def is_held_out(digest: int, fraction: float) -> bool:
    """Whether a document is held out: its text decides, so that it is never on both sides."""
    return digest / 2**64 < fraction


class _Rows:
    """The rows of one side: filled one after the other, handed out in blocks."""

    def __init__(self, capacity: int, width: int, marks: Marks, rows_a_block: int) -> None:
        self.capacity, self.width, self.marks = capacity, width, marks
        self.rows_a_block = rows_a_block
        # Full rows, handed out or not; positions filled in the row that is not yet full; and
        # tokens that found no room.
        self.finished = self.used = self.cut = 0
        self._open_block()

    def _open_block(self) -> None:
        shape = (self.rows_a_block, self.width)
        self.tokens = np.full(shape, self.marks.pad, dtype=np.int32)
        self.documents = np.full(shape, NO_DOCUMENT, dtype=np.int32)
        self.in_block = 0

    @property
    def full(self) -> bool:
        return self.finished == self.capacity

    def add(self, ids: NDArray[np.int32], document: int) -> Iterator[None]:
        """Append one document; stops after each row that it fills, for blocks to be taken."""
        start = 0
        while start < len(ids) and not self.full:
            if self.used == 0 and start > 0:
                # A row that begins inside a document begins with the tokens as well: models
                # treat the first position apart, whatever stands there.
                self._put(np.array(self.marks.begin, dtype=np.int32), document)
            part = ids[start : start + self.width - self.used]
            self._put(part, document)
            start += len(part)
            if self.used == self.width:
                self._close_row()
                yield
        self.cut += len(ids) - start

    def _put(self, part: NDArray[np.int32], document: int) -> None:
        place = slice(self.used, self.used + len(part))
        self.tokens[self.in_block, place] = part
        self.documents[self.in_block, place] = document
        self.used += len(part)

    def _close_row(self) -> None:
        self.used = 0
        self.in_block += 1
        self.finished += 1

    def pad(self) -> bool:
        """Leave the rest of a begun row to padding; whether there was one."""
        begun = self.used > 0
        if begun:
            self._close_row()
        return begun

    def take(self, held_out: bool, *, all_of_it: bool) -> Iterator[RowBlock]:
        """Give a whole block if there is one; with `all_of_it` what there is, no row begun."""
        if self.in_block == self.rows_a_block or (all_of_it and self.in_block):
            yield RowBlock(
                held_out, self.tokens[: self.in_block], self.documents[: self.in_block]
            )
            self._open_block()


def pack(
    documents: Iterable[Document | Unreadable],
    plan: TextPlan,
    marks: Marks,
    counts: TextCounts,
    *,
    held_out_fraction: float,
    one_document_a_row: bool = False,
    rows_a_block: int = ROWS_A_BLOCK,
) -> Iterator[RowBlock]:
    """Fill the plan's rows from a stream of documents, a block of rows at a time.

    Documents are packed end to end. With `one_document_a_row` each begins a row of its own,
    goes on in further rows if it is longer, and the rest of its last row is padding. Documents
    that were seen already are skipped; text is cut only where the last row of a side ends.
    The memory taken does not grow with the rows, but by some bytes for every document. `counts`
    are filled on the way, and complete when the blocks end.

    Raises:
        UserError: if the text does not fill one row for training and one held out.
    """
    width = plan.context_size
    require(
        width > len(marks.begin),
        f"context_size={width} has no room for text after the {len(marks.begin)} tokens "
        "that begin every sequence; give a larger one",
    )
    sides = {
        False: _Rows(plan.n_training, width, marks, rows_a_block),
        True: _Rows(plan.n_held_out, width, marks, rows_a_block),
    }
    seen = _Seen()
    for digest, ids in _readable(documents, counts):
        held_out = is_held_out(digest, held_out_fraction)
        side = sides[held_out]
        if not len(ids):
            counts.empty += 1
        elif not seen.add(digest):
            counts.repeated += 1
        elif side.full:
            counts.unneeded += 1
        else:
            index = counts.count(digest)
            for _ in side.add(marked(ids, marks), index):
                yield from side.take(held_out, all_of_it=False)
            if one_document_a_row and side.pad():
                yield from side.take(held_out, all_of_it=False)
            if all(side.full for side in sides.values()):
                break
    for held_out, side in sides.items():
        # A last row that the text did not fill is dropped.
        counts.tokens_cut += side.cut + side.used
        side.used = 0
        yield from side.take(held_out, all_of_it=True)
    if not all(side.finished for side in sides.values()):
        raise UserError(
            f"the text is too short: {counts.used} documents do not fill one sequence of "
            f"{width} tokens for training and one that is held out; give more text or a "
            "smaller context_size"
        )


def _readable(
    documents: Iterable[Document | Unreadable], counts: TextCounts
) -> Iterator[Document]:
    for document in documents:
        if isinstance(document, Unreadable):
            counts.pass_over(document)
        else:
            yield document


def marked(ids: NDArray[np.int32], marks: Marks) -> NDArray[np.int32]:
    """Put marks around a document; those that it brings itself (chats, tokens) stay single."""
    begin, end = (np.array(mark, dtype=np.int32) for mark in (marks.begin, marks.end))
    if np.array_equal(ids[: len(begin)], begin):
        begin = begin[:0]
    if len(end) and np.array_equal(ids[-len(end) :], end):
        end = end[:0]
    return np.concatenate([begin, ids, end])


class _Seen:
    """A set of digests in about eight bytes each: a sorted array, and a set of recent ones."""

    def __init__(self) -> None:
        self.sorted = np.zeros(0, dtype=np.uint64)
        self.recent: set[int] = set()

    def add(self, digest: int) -> bool:
        """Return whether it was new."""
        key = np.uint64(digest)
        at = int(np.searchsorted(self.sorted, key))
        if digest in self.recent or (at < len(self.sorted) and self.sorted[at] == key):
            return False
        self.recent.add(digest)
        if len(self.recent) == 1 << 16:
            more = np.fromiter(self.recent, dtype=np.uint64, count=len(self.recent))
            self.sorted = np.sort(np.concatenate([self.sorted, more]))
            self.recent.clear()
        return True
