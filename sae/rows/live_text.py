"""The text of a training without a cache: read as often as needed, found again by position."""

import hashlib
import itertools
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from sae.base import UserError, require, say
from sae.models import LanguageModel, load_tokenizer
from sae.rows.reading import Reading, marks_of
from sae.text.packing import RowBlock, TextCounts, TextPlan, is_held_out, pack
from sae.text.source import documents
from sae.text.tokens import default_workers, tokenized, until_stopped

# A harvest gives a GPU whole chunks; here what is computed ahead has to stay in memory.
_MOST_TOKENS_A_FORWARD = 32_768


@dataclass(frozen=True, slots=True)
class Position:
    """How far the training side of a text was read."""

    reading: int = 0
    """Number of times that the text was read to its end."""
    sequences: int = 0
    """Number of training sequences that were read since."""
    digest: str = ""
    """Digest of the tokens of these sequences."""


class LiveText:
    """The sequences that a cache of a whole text has, in blocks for one forward pass each.

    Args:
        config: its data, context_size, one_document_a_row, batch_size and text_workers count.
    """

    def __init__(self, config: Reading, model: LanguageModel) -> None:
        self._config, self._model = config, model
        most = max(1, _MOST_TOKENS_A_FORWARD // config.context_size)
        usual = min(config.sequences_a_batch(model.device), most)
        self._sequences_a_block = config.batch_size or usual

    def once(
        self, stopped: threading.Event | None = None, *, n_workers: int = 0
    ) -> Iterator[RowBlock]:
        """Give blocks of both sides, until the text ends.

        Args:
            stopped: ends it within the next document, by `Stopped`.
            n_workers: processes that tokenise ahead.
        """
        data = self._config.data
        found = tokenized(documents(data), self._model.tokenizer, n_workers)
        return pack(
            found if stopped is None else until_stopped(found, stopped),
            TextPlan(sys.maxsize, sys.maxsize, self._config.context_size),
            marks_of(self._model),
            TextCounts(),
            held_out_fraction=data.held_out_fraction,
            one_document_a_row=self._config.one_document_a_row,
            rows_a_block=self._sequences_a_block,
        )

    def onwards(
        self, begin: Position, stopped: threading.Event
    ) -> Iterator[tuple[RowBlock, Position]]:
        """Give training blocks from a position on, endlessly, each with the next one's.

        Raises:
            UserError: if the text before that position is not what it was.
        """
        for reading in itertools.count(begin.reading):
            yield from self._reading(reading, begin, stopped)
            if reading == 0:
                say("train: the text has ended, and begins again")
            begin = Position(reading + 1)

    def _reading(
        self, reading: int, begin: Position, stopped: threading.Event
    ) -> Iterator[tuple[RowBlock, Position]]:
        workers = self._config.text_workers
        n_workers = default_workers() if workers is None else workers
        found, at = hashlib.sha256(), 0
        for block in self.once(stopped, n_workers=n_workers):
            if block.held_out:
                continue
            known = min(len(block.tokens), begin.sequences - at)
            if known > 0:
                found.update(block.tokens[:known].tobytes())
                at += known
                if at == begin.sequences and found.hexdigest() != begin.digest:
                    raise self._changed()
                block = RowBlock(False, block.tokens[known:], block.documents[known:])
            if len(block.tokens):
                found.update(block.tokens.tobytes())
                at += len(block.tokens)
                yield block, Position(reading, at, found.hexdigest())
        if at < begin.sequences:
            raise self._changed()

    def _changed(self) -> UserError:
        return UserError(
            f"data.name={self._config.data.name} is not the text that this training was begun "
            "with; put it back, or give the new training another name=..."
        )


def check_text(config: Reading, batch_size: int) -> None:
    """Refuse, with the tokenizer alone, a text that cannot be read or does not fill a batch."""
    seen: set[int] = set()
    n = 0
    for key, ids in tokenized(documents(config.data), load_tokenizer(config.model), 0):
        if key not in seen and not is_held_out(key, config.data.held_out_fraction):
            n += len(ids)
        seen.add(key)
        if n >= batch_size:
            return
    check_enough(config, n, batch_size)


def check_enough(config: Reading, n_rows: int, batch_size: int) -> None:
    """Refuse a text whose training rows, all of them, are no batch."""
    require(
        n_rows >= batch_size,
        f"data.name={config.data.name} has {n_rows:,} rows to train on, less than one batch of "
        f"train_batch_size_tokens={batch_size:,}; give more text or a smaller batch",
    )
