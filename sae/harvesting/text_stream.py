"""The text of a harvest: streamed into the cache by a thread, ahead of the model."""

import threading
from typing import Any, Self

from sae.base import say
from sae.cache.text_writer import write_text
from sae.cache.writer import CacheWriter
from sae.text.packing import Marks, TextCounts, pack
from sae.text.source import DataConfig, documents
from sae.text.tokens import Stopped, default_workers, tokenized, until_stopped


class TextStream:
    """Writes a cache's text from a thread; chunks of activations follow as it comes."""

    def __init__(
        self,
        location: str,
        config: DataConfig,
        tokenizer: Any,
        marks: Marks,
        *,
        n_workers: int | None,
        one_document_a_row: bool,
    ) -> None:
        self._config, self._tokenizer, self._marks = config, tokenizer, marks
        self._one_document_a_row = one_document_a_row
        self._n_workers = default_workers() if n_workers is None else n_workers
        # The thread has the cache opened for itself: zarr's objects keep what they have read.
        self._writer = CacheWriter(location)
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="text", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def check(self) -> None:
        """Raise here what went wrong there."""
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Wait until the text is complete."""
        self._thread.join()
        self.check()

    def _run(self) -> None:
        try:
            self._stream()
        except Stopped:
            pass
        except BaseException as error:
            self._error = error

    def _stream(self) -> None:
        counts = TextCounts()
        config = self._config
        stream = tokenized(documents(config), self._tokenizer, self._n_workers)
        blocks = pack(
            until_stopped(stream, self._stopped),
            self._writer.planned,
            self._marks,
            counts,
            held_out_fraction=config.held_out_fraction,
            one_document_a_row=self._one_document_a_row,
        )
        write_text(self._writer, blocks, counts.digests, counts.summary)
        _report(self._writer, counts)


def _report(writer: CacheWriter, counts: TextCounts) -> None:
    found, planned = writer.plan.n_sequences, writer.planned.n_sequences
    width = writer.plan.context_size
    if found < planned:
        say(
            f"harvest: the text ended after {found * width:,} of {planned * width:,} tokens; "
            "the cache is as much smaller"
        )
    left_out = {
        "repeated": counts.repeated,
        "empty": counts.empty,
        "not needed any more": counts.unneeded,
    }
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in left_out.items() if n)
    say(
        f"harvest: {counts.used:,} documents used"
        + (f", left out {reasons}" if reasons else "")
        + (f"; {counts.tokens_cut:,} tokens cut at the end" if counts.tokens_cut else "")
    )
