"""Reading every chunk of every array of a cache, to find what is damaged or missing."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from sae.base import UserError
from sae.cache.descriptions import damaged_descriptions
from sae.cache.layout import (
    STATISTICS,
    TEXT,
    ActivationCache,
    chunk_key,
    chunk_slices,
    opened_array,
    stored_rows,
)
from sae.cache.store import explained_store_failures, stored_keys

# Threads wait for a disk or an object store; so many chunks are asked for at a time.
_THREADS = 8
_CHUNKS_AT_A_TIME = 256


@dataclass(frozen=True, slots=True)
class CheckedChunk:
    """What was found when a chunk was read."""

    array: str
    rows: str
    """Which part of the array it is, for people: `sequences 32 to 63`."""
    n_bytes: int
    """How many were read; none if it is not there."""
    wrong: str | None
    """What is wrong with it; None if nothing."""
    missing: bool = False


def array_names(cache: ActivationCache) -> list[str]:
    """Return the arrays of a cache; those of its statistics only once it is complete."""
    kinds = ["activations", "norms", "moments", *(["scales"] if cache.dtype == "int8" else [])]
    names = [*TEXT] if cache.attributes["text_complete"] else ["tokens", "documents"]
    for hook in cache.hook_names:
        names += [f"{kind}/{hook}" for kind in kinds]
        if cache.attributes["complete"]:
            names += [f"statistics/{hook}/{name}" for name in STATISTICS]
    return names


def bytes_to_read(cache: ActivationCache) -> int:
    """Size of everything that `check_chunks` reads, if all of it is there."""
    total = 0
    for name in array_names(cache):
        # What is wrong with an array is for `check_chunks` to say.
        with contextlib.suppress(UserError):
            array = opened_array(cache.group, cache.location, name)
            total += array.nchunks * _chunk_bytes(array)
    return total


def check_chunks(cache: ActivationCache) -> Iterator[CheckedChunk]:
    """Every chunk of every array, read and verified by threads, in order.

    The cache may be unfinished; what is not written yet is reported as not there.
    """
    chunks = _chunks(cache)
    with ThreadPoolExecutor(_THREADS) as threads:
        for some in iter(lambda: list(islice(chunks, _CHUNKS_AT_A_TIME)), []):
            yield from threads.map(lambda chunk: _checked(cache, chunk), some)


def _chunks(cache: ActivationCache) -> Iterator[tuple[Any, slice, str] | CheckedChunk]:
    """Array, rows and words for them of what is to be read; what is wrong with the rest."""
    n = sum(cache.attributes["rows"].values())
    with explained_store_failures(cache.location):
        damaged = damaged_descriptions(cache.location, cache.attributes)
    for name in damaged:
        yield CheckedChunk(name, "its zarr.json", 0, "is damaged or not there")
    for name in array_names(cache):
        # What the store itself refuses is no damage, and ends all.
        with explained_store_failures(cache.location):
            try:
                array, why = opened_array(cache.group, cache.location, name), None
            except UserError as error:
                array, why = None, error.__cause__
        if array is None:
            gone = isinstance(why, KeyError)
            wrong = "is not there" if gone else f"has a damaged zarr.json ({why})"
            yield CheckedChunk(name, "all of it", 0, wrong)
            continue
        kind = name.split("/")[0]
        of_sequences = kind not in ("document_digests", "moments", "statistics")
        if of_sequences and array.shape[0] != n:
            wrong = f"has {array.shape[0]} sequences where {n} should be"
            yield CheckedChunk(name, "all of it", 0, wrong)
        there = stored_keys(cache.location, name)
        unit = "sequences" if of_sequences else "entries"
        for i, rows in enumerate(chunk_slices(array.shape[0], array.chunks[0])):
            where = f"{unit} {rows.start} to {rows.stop - 1}"
            if chunk_key(array, i) in there:
                yield array, rows, where
            else:
                yield CheckedChunk(name, where, 0, "is not there", missing=True)


def _checked(
    cache: ActivationCache, chunk: tuple[Any, slice, str] | CheckedChunk
) -> CheckedChunk:
    if isinstance(chunk, CheckedChunk):
        return chunk
    array, rows, where = chunk
    wrong = None
    try:
        with explained_store_failures(cache.location):
            stored_rows(array, cache.location, rows)
    except FileNotFoundError:
        wrong = "is not there"
    except ValueError as error:
        wrong = f"is damaged ({error})"
    return CheckedChunk(array.path, where, _chunk_bytes(array), wrong)


def _chunk_bytes(array: Any) -> int:
    return int(np.prod(array.chunks)) * int(array.dtype.itemsize)
