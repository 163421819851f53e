"""Documents to rows of tokens: packed end to end, each document on one side of the split."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae.base.errors import UserError
from sae.base.progress import progress

_DOCUMENTS_A_CALL = 256


@dataclass(frozen=True, slots=True)
class PackedText:
    """Rows of tokens: first the rows for training, then the held-out ones."""

    tokens: NDArray[np.int32]
    """(sequence, position)."""
    documents: NDArray[np.int32]
    """(sequence, position): index into `document_digests`; −1 where no document is."""
    held_out: NDArray[np.bool_]
    """(sequence,): whether every document of the row is held out."""
    document_digests: NDArray[np.uint64]
    """(document,): the first eight bytes of the SHA-256 of each document's text."""


def document_digest(text: str) -> int:
    """The first eight bytes of the SHA-256 of `text`, as an unsigned number."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "big")


def is_held_out(digest: int, fraction: float) -> bool:
    """Whether a document belongs to the held-out share; depends on its text alone.

    So a text that comes twice, in another order or another file, is never on both sides.
    """
    return digest / 2**64 < fraction


class _Rows:
    """Fills rows of `width` tokens for one side of the split until `capacity` rows are full."""

    def __init__(self, capacity: int, width: int, bos: int | None) -> None:
        self.capacity, self.width, self.bos = capacity, width, bos
        self.tokens: list[list[int]] = []
        self.owners: list[list[int]] = []

    @property
    def full(self) -> bool:
        return len(self.tokens) == self.capacity and len(self.tokens[-1]) == self.width

    def add(self, ids: list[int], document: int) -> None:
        """Append one document, as many rows as it takes."""
        start = 0
        pending = ids if self.bos is None else [self.bos, *ids]
        owners = [document] * len(pending)
        while start < len(pending) and not self.full:
            if not self.tokens or len(self.tokens[-1]) == self.width:
                # A row that begins inside a document begins with the token as well: models
                # treat the first position apart, whatever stands there.
                inside = self.bos is not None and start > 0
                self.tokens.append([self.bos] if inside and self.bos is not None else [])
                self.owners.append([document] if inside else [])
            room = self.width - len(self.tokens[-1])
            self.tokens[-1].extend(pending[start : start + room])
            self.owners[-1].extend(owners[start : start + room])
            start += room

    def complete(self) -> tuple[list[list[int]], list[list[int]]]:
        """The full rows; a last row that the text did not fill is dropped."""
        n = len(self.tokens) - (len(self.tokens) > 0 and len(self.tokens[-1]) < self.width)
        return self.tokens[:n], self.owners[:n]


def pack(
    documents: Iterable[str],
    tokenizer: Any,
    *,
    bos_token_id: int | None,
    context_size: int,
    n_tokens: int,
    held_out_fraction: float,
) -> PackedText:
    """Tokenise documents and pack them into about `n_tokens / context_size` rows.

    `bos_token_id` stands before every document and at the start of every row. Documents
    that were seen already are skipped. Text is cut only where it ends: at the last row.

    Raises:
        UserError: if the text does not fill one row for training and one held out.
    """
    n_rows = max(2, round(n_tokens / context_size))
    n_held_out = min(n_rows - 1, max(1, round(n_rows * held_out_fraction)))
    sides = {
        False: _Rows(n_rows - n_held_out, context_size, bos_token_id),
        True: _Rows(n_held_out, context_size, bos_token_id),
    }
    digests: dict[int, int] = {}
    with progress(n_rows * context_size, "tokens", "tok") as bar:
        for text, ids in _tokenized(documents, tokenizer):
            if all(side.full for side in sides.values()):
                break
            digest = document_digest(text)
            side = sides[is_held_out(digest, held_out_fraction)]
            if not ids or digest in digests or side.full:
                continue
            digests[digest] = len(digests)
            side.add(ids, digests[digest])
            bar.update(min(len(ids), bar.total - bar.n))
    parts = [sides[False].complete(), sides[True].complete()]
    if not all(rows for rows, _ in parts):
        raise UserError(
            f"the text is too short: {len(digests)} documents do not fill one row of "
            f"{context_size} tokens for training and one held out; give more text or a "
            "smaller context_size"
        )
    held_out = np.repeat([False, True], [len(rows) for rows, _ in parts])
    return PackedText(
        np.array([row for rows, _ in parts for row in rows], dtype=np.int32),
        np.array([row for _, owners in parts for row in owners], dtype=np.int32),
        held_out,
        np.array(list(digests), dtype=np.uint64),
    )


def _tokenized(documents: Iterable[str], tokenizer: Any) -> Iterator[tuple[str, list[int]]]:
    stream = iter(documents)
    while batch := list(islice(stream, _DOCUMENTS_A_CALL)):
        encoded = tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
        yield from zip(batch, encoded, strict=True)
