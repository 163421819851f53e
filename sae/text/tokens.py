"""Documents to token ids, ahead of whoever packs them and in other processes if wanted."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import connection
from typing import Any

import numpy as np

from sae.base.errors import UserError
from sae.text.packing import Document, document_digest
from sae.text.source import Chat

_DOCUMENTS_A_CALL = 256

Encoded = list[Document]


class Stopped(Exception):
    """Ends a thread that reads text, when whoever it reads for has ended without it."""


def until_stopped(stream: Iterable[Document], stopped: threading.Event) -> Iterator[Document]:
    """The documents of a stream; raises `Stopped` once it is told to."""
    for document in stream:
        if stopped.is_set():
            raise Stopped
        yield document


def default_workers() -> int:
    """Processes that tokenise: a quarter of the cores, at most 8; none on a small machine."""
    return min(8, (os.cpu_count() or 1) // 4)


def tokenized(
    documents: Iterable[str | Chat], tokenizer: Any, n_workers: int
) -> Iterator[Document]:
    """Digest and token ids of every document, in order.

    Args:
        tokenizer: of `transformers`; its chat template turns conversations into text.
        n_workers: processes that tokenise; 0 does it here. What comes out is the same.
    """
    stream = iter(documents)
    batches = iter(lambda: list(islice(stream, _DOCUMENTS_A_CALL)), [])
    if n_workers == 0:
        for batch in batches:
            yield from _encode(batch, tokenizer)
        return
    for encoded in _in_workers(batches, tokenizer, n_workers):
        yield from encoded


def _encode(batch: list[str | Chat], tokenizer: Any) -> Encoded:
    texts = [d if isinstance(d, str) else _chat_text(d, tokenizer) for d in batch]
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [
        (document_digest(text), np.array(found, dtype=np.int32))
        for text, found in zip(texts, ids, strict=True)
    ]


def _chat_text(chat: Chat, tokenizer: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "the text holds conversations, and the model's tokenizer has no chat template; "
            "take an instruction-tuned model, or data.column=... with plain text"
        )
    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False))
    except Exception as error:
        # Templates are programs in Jinja: they refuse what they do not know as they like.
        first = str(error).strip().split("\n")[0]
        raise UserError(f"the chat template refused a conversation: {first}") from error


def _in_workers(
    batches: Iterator[list[str | Chat]], tokenizer: Any, n_workers: int
) -> Iterator[Encoded]:
    """Results in order, with never more than two batches a worker under way."""
    # Not forked: this process holds threads by now.
    context = multiprocessing.get_context("spawn")
    pending: deque[Future[Encoded]] = deque()
    with ProcessPoolExecutor(
        n_workers, mp_context=context, initializer=_begin_worker, initargs=(tokenizer,)
    ) as pool:
        try:
            for batch in batches:
                with _apart_from_main():
                    pending.append(pool.submit(_encode_in_worker, batch))
                if len(pending) >= 2 * n_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


@contextlib.contextmanager
def _apart_from_main() -> Iterator[None]:
    """Processes that begin in here do not run the caller's script again.

    `multiprocessing` would have each import it, and a script without a guard for `__main__`
    would harvest once more in all of them. A worker needs nothing of it.
    """
    main = vars(sys.modules["__main__"])
    kept: dict[str, Any] = {
        name: main.pop(name) for name in ("__file__", "__spec__") if name in main
    }
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(kept)


_worker_tokenizer: Any = None  # of this process; only ever set in a worker


def _begin_worker(tokenizer: Any) -> None:
    global _worker_tokenizer
    _worker_tokenizer = tokenizer
    # Ctrl-C reaches the whole group of processes; whoever gives the work ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A worker waits for work forever; if whoever gives it is killed, nobody would end it.
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave_with(sentinel: int) -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=leave_with, args=(parent.sentinel,), daemon=True).start()


def _encode_in_worker(batch: list[str | Chat]) -> Encoded:
    return _encode(batch, _worker_tokenizer)
