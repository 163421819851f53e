"""Streaming text into a cache: final as it comes, checked against what is there already."""

import contextlib
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from sae.base import UserError, digest_bytes
from sae.cache.layout import chunk_slices
from sae.cache.store import explained_store_failures
from sae.cache.writer import NOT_WRITTEN, CacheWriter, store_whole
from sae.text.packing import ROWS_A_BLOCK, RowBlock, TextPlan


def write_text(
    writer: CacheWriter,
    blocks: Iterable[RowBlock],
    digests: Callable[[], NDArray[np.uint64]],
    summary: Callable[[], dict[str, int]] = dict,
) -> None:
    """Stream a text into a cache, and declare it complete; damaged parts are put back.

    Blocks of either side come in their order. When they have ended, `digests` is asked for
    those of all documents, and `summary` for what became of them.

    Raises:
        UserError: if a part of another text is there already.
    """
    plan = writer.plan
    written = {False: 0, True: 0}
    # A process died when the text had ended early and the held-out rows were moving up: each
    # goes to its last place now, whatever stands there. Nothing was computed from them yet.
    moving = not writer.text_complete and plan != writer.planned
    if not writer.text_complete:
        with explained_store_failures(writer.location):
            # It may have died after it had shortened some arrays.
            writer.resize(writer.planned.n_sequences)
    for block in blocks:
        first, room = (
            (plan.n_training, plan.n_held_out) if block.held_out else (0, plan.n_training)
        )
        at = first + written[block.held_out]
        written[block.held_out] += len(block.tokens)
        if written[block.held_out] > room:
            raise _another_text(writer)
        over = moving and block.held_out
        with explained_store_failures(writer.location):
            _put_rows(writer, "documents", at, block.documents, over=over)
            _put_rows(writer, "tokens", at, block.tokens, over=over)
    found = TextPlan(written[False], written[True], plan.context_size)
    data_digest = digest_bytes([digests().tobytes()])
    other = writer.text_complete and data_digest != writer.attributes["data_digest"]
    if other or ((moving or writer.text_complete) and found != plan):
        raise _another_text(writer)
    with explained_store_failures(writer.location):
        if not writer.text_complete and found != writer.planned:
            if not moving:
                _close_gap(writer, found)
            _give_up_what_is_behind(writer, found.n_sequences)
        held_out = np.arange(found.n_sequences) >= found.n_training
        store_whole(writer.group, "held_out", held_out)
        store_whole(writer.group, "document_digests", digests())
        if not writer.text_complete:
            writer.declare(
                data={**writer.attributes["data"], "documents": summary()},
                data_digest=data_digest,
                text_complete=True,
            )


def _put_rows(
    writer: CacheWriter, name: str, at: int, rows: NDArray[np.int32], *, over: bool
) -> None:
    """Store rows where none are or the same; others are refused, or written `over`."""
    array, place, fill = writer.array(name), slice(at, at + len(rows)), NOT_WRITTEN[name]
    try:
        found = np.asarray(array[place])
    except ValueError:
        # To rewrite a part of a damaged chunk zarr would read it first, so it is emptied.
        for chunk in chunk_slices(array.shape[0], array.chunks[0]):
            if chunk.start < place.stop and chunk.stop > place.start:
                with contextlib.suppress(ValueError):
                    np.asarray(array[chunk])
                    continue
                array[chunk] = fill
        found = np.asarray(array[place])
    if np.array_equal(found, rows):
        return
    if not over and bool(((found != fill) & (found != rows)).any()):
        raise _another_text(writer)
    array[place] = rows


def _another_text(writer: CacheWriter) -> UserError:
    return UserError(
        f"{writer.location} was begun with another text, because what "
        f"data.name={writer.attributes['data']['name']} gives has changed since then; "
        "choose another run=... or remove the cache"
    )


def _close_gap(writer: CacheWriter, found: TextPlan) -> None:
    """Move the held-out rows up behind a text that ended before its rows were full."""
    gap = writer.plan.n_training - found.n_training
    # Said first. From here on no row behind the training rows is taken for final before the
    # text is complete, and whoever goes on after a death knows where the rows belong.
    writer.declare(rows={"n_training": found.n_training, "n_held_out": found.n_held_out})
    for name in NOT_WRITTEN:
        array = writer.array(name)
        for part in chunk_slices(found.n_held_out, ROWS_A_BLOCK) if gap else []:
            to = slice(found.n_training + part.start, found.n_training + part.stop)
            array[to] = np.asarray(array[to.start + gap : to.stop + gap])


def _give_up_what_is_behind(writer: CacheWriter, n: int) -> None:
    for name, fill in NOT_WRITTEN.items():
        array = writer.array(name)
        # What stands behind the end in the last chunk is a part of its bytes.
        end = min(array.shape[0], -(-n // array.chunks[0]) * array.chunks[0])
        if end > n:
            array[n:end] = fill
    writer.resize(n)
