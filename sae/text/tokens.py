"""Documents to token ids, ahead of whoever packs them and in other processes if wanted."""

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from queue import SimpleQueue
from typing import Any, Self

import numpy as np

from sae.base import UserError
from sae.text.packing import Document, document_digest, tokens_digest
from sae.text.rows import Chat, Read, Tokens, Unreadable
from sae.text.source import DataConfig, check_source, documents

_DOCUMENTS_A_CALL = 256

Encoded = list[Document | Unreadable]


class Stopped(Exception):
    """Ends a thread that reads text, when whoever it reads for has ended without it."""


def encoded(
    config: DataConfig,
    tokenizer: Any,
    n_workers: int | None = 0,
    stopped: threading.Event | None = None,
) -> Iterator[Document | Unreadable]:
    """Give digest and token ids of every document of a text, until `stopped` is set."""
    if n_workers is None:
        # A quarter of the cores, and none on a small machine.
        n_workers = min(8, (os.cpu_count() or 1) // 4)
    for document in tokenized(documents(config), tokenizer, n_workers):
        if stopped is not None and stopped.is_set():
            raise Stopped
        yield document


def tokenized(
    stream: Iterable[Read], tokenizer: Any, n_workers: int
) -> Iterator[Document | Unreadable]:
    """Give digest and token ids of every document, in order, or that it cannot be read.

    The chat template of the tokenizer, one of `transformers`, turns conversations into text.
    `n_workers` processes tokenise; with 0 it is done here, and what comes out is the same.
    """
    stream = iter(stream)
    batches = iter(lambda: list(islice(stream, _DOCUMENTS_A_CALL)), [])
    if n_workers == 0:
        for batch in batches:
            yield from _encode(batch, tokenizer)
        return
    for encoded in _in_workers(batches, tokenizer, n_workers):
        yield from encoded


def check_text(config: DataConfig, tokenizer: Callable[[], Any]) -> None:
    """Refuse a bad source, or one that is not for this tokenizer, before a model is loaded.

    Args:
        tokenizer: loads it; called only for documents that depend on which one it is.
    """
    first = check_source(config)
    if first is not None and not isinstance(first, str):
        _encode([first], tokenizer())


def _encode(batch: list[Read], tokenizer: Any) -> Encoded:
    found: dict[int, Document | Unreadable] = {}
    texts: dict[int, str] = {}
    for at, document in enumerate(batch):
        if isinstance(document, Unreadable):
            found[at] = document
        elif isinstance(document, np.ndarray):
            _check_vocabulary(document, tokenizer)
            found[at] = tokens_digest(document), document
        else:
            told = document if isinstance(document, str) else _chat_text(document, tokenizer)
            texts[at] = told
    if texts:
        every = tokenizer(list(texts.values()), add_special_tokens=False, verbose=False)
        for (at, text), ids in zip(texts.items(), every["input_ids"], strict=True):
            found[at] = document_digest(text), np.array(ids, dtype=np.int32)
    return [found[at] for at in range(len(batch))]


def _check_vocabulary(ids: Tokens, tokenizer: Any) -> None:
    wrong = ids[(ids < 0) | (ids >= len(tokenizer))]
    if len(wrong):
        raise UserError(
            f"the text holds token {wrong[0]}, but the tokenizer of the model only has 0 to "
            f"{len(tokenizer) - 1}, so the text was tokenised for another model; give the "
            "texts themselves"
        )


def _chat_text(chat: Chat, tokenizer: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "the text contains conversations, but the tokenizer of the model has no chat "
            "template; use an instruction-tuned model, or a data.column=... with plain text"
        )
    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False))
    except Exception as error:
        # Templates are programs in Jinja: they refuse what they do not know as they like.
        first = str(error).strip().split("\n")[0]
        raise UserError(f"the chat template refused a conversation: {first}") from error


def _in_workers(
    batches: Iterator[list[Read]], tokenizer: Any, n_workers: int
) -> Iterator[Encoded]:
    """Yield results in order, with never more than two batches a worker under way."""
    pending: deque[Future[Encoded]] = deque()
    with ExitStack() as stack:
        workers: SimpleQueue[_Worker] = SimpleQueue()
        for _ in range(n_workers):
            workers.put(stack.enter_context(_Worker(tokenizer)))
        # A thread for each waits for its answers.
        pool = stack.enter_context(ThreadPoolExecutor(n_workers))
        stack.callback(pool.shutdown, cancel_futures=True)

        def encode(batch: list[Read]) -> Encoded:
            worker = workers.get()
            try:
                return worker.encode(batch)
            finally:
                workers.put(worker)

        for batch in batches:
            pending.append(pool.submit(encode, batch))
            if len(pending) >= 2 * n_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


class _Worker:
    """A process that tokenises what it is sent, until nobody can send any more.

    It is a Python of its own and not one of `multiprocessing`, which would have it import the
    caller's script: one without a guard for `__main__` would harvest once more in there.
    """

    def __init__(self, tokenizer: Any) -> None:
        code = "from sae.text.tokens import work; work()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            # Ctrl-C is for whoever gives the work, and ends it.
            start_new_session=True,
        )
        self._send(tokenizer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # The pipe's end ends it, as it does when this process is killed.
        self._process.communicate()

    def _send(self, value: object) -> None:
        assert self._process.stdin is not None
        pickle.dump(value, self._process.stdin)
        self._process.stdin.flush()

    def encode(self, batch: list[Read]) -> Encoded:
        """Return the token ids of a batch; raises here what went wrong there."""
        assert self._process.stdout is not None
        try:
            self._send(batch)
            found: Encoded | Exception = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError) as error:
            raise RuntimeError("a process that tokenises has ended") from error
        if isinstance(found, Exception):
            raise found
        return found


def work() -> None:
    """Tokenise batches that come on standard input, and answer on standard output."""
    answers = os.fdopen(os.dup(1), "wb")
    # Whatever prints in here is no answer.
    os.dup2(2, 1)
    with contextlib.suppress(EOFError, BrokenPipeError):
        tokenizer = pickle.load(sys.stdin.buffer)
        while True:
            batch = pickle.load(sys.stdin.buffer)
            try:
                found: Encoded | Exception = _encode(batch, tokenizer)
            except Exception as error:
                found = error
            pickle.dump(found, answers)
            answers.flush()
