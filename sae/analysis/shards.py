"""The one pass over a cache: every text row encoded once, its active entries kept on disk.

A shard holds the entries of some consecutive chunks by token, and by feature. Either order is
read in pieces whose size does not depend on the number of tokens.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae.analysis.work import Arrays, Work
from sae.base import UserError, progress
from sae.cache.layout import ActivationCache
from sae.core import panel_kernels
from sae.core.cpu_kernels import use_threads
from sae.dictionary import Dictionary

SHARD_ROWS = 65_536
"""Text rows of a shard, about: what a kill costs at most."""
SHARD_ENTRIES = 8 << 20
"""Where many features fire at once a shard has fewer rows, so that it has about so many."""
ROW_BYTES = 512 << 20
"""Where activations are wide a shard has fewer rows, so that they take no more bytes."""
BLOCK_ENTRIES = 16 << 20
"""Entries of the features that are looked at together: 192 MB."""
_SAMPLE_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Text:
    """The tokens of a cache and facts about them, in flat arrays mapped from files."""

    tokens: NDArray[np.int32]
    """(token,): ids."""
    documents: NDArray[np.int32]
    """(token,): index of the document; −1 for what is no text row."""
    n_sequences: int
    context_size: int
    n_rows: int
    """Text rows."""
    n_documents: int
    """Documents that have a text row."""
    document_end: int
    """One more than the highest index of a document."""
    counts: NDArray[np.int64]
    """(token id,): text rows of each id, up to the highest id of the cache."""


def read_text(cache: ActivationCache, work: Work) -> Text:
    """Copy the cache's tokens into files, a piece at a time, and count them."""
    shape = cache.n_sequences, cache.context_size
    paths = [work.folder / f"{name}.bin" for name in ("tokens", "documents")]
    special = cache.attributes["special_token_ids"]
    counts = np.zeros(0, np.int64)
    seen = np.zeros(0, np.bool_)
    step = max(1, (1 << 20) // shape[1])
    # Written, and mapped only to be read: where a mapped page finds no room on the disk, the
    # system ends the process without a word.
    with paths[0].open("wb") as tokens, paths[1].open("wb") as documents:
        for start in range(0, shape[0], step):
            part = slice(start, min(start + step, shape[0]))
            ids, owners = cache.read_rows("tokens", part), cache.read_rows("documents", part)
            if ids.min() < 0:
                raise UserError(
                    f"{cache.location}: tokens are missing in sequences {part.start} to "
                    f"{part.stop - 1}; harvest again"
                )
            owners = np.where(np.isin(ids, special), -1, owners).astype(np.int32)
            tokens.write(np.ascontiguousarray(ids).data)
            documents.write(np.ascontiguousarray(owners).data)
            text = owners >= 0
            counts = _added(counts, np.bincount(ids[text], minlength=int(ids.max()) + 1))
            seen = _added(seen, np.bincount(owners[text]) > 0)
    flat_tokens, flat_documents = (np.asarray(np.memmap(p, np.int32, "r")) for p in paths)
    return Text(
        flat_tokens,
        flat_documents,
        *shape,
        n_rows=int(counts.sum()),
        n_documents=int(seen.sum()),
        document_end=len(seen),
        counts=counts,
    )


def _added(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    # One of the two may be longer; of truth values it is "or".
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    longer = longer.copy()
    longer[: len(shorter)] += shorter
    return longer


@dataclass(frozen=True, slots=True)
class Shard:
    """Some consecutive sequences of the cache, whole chunks of it."""

    name: str
    chunks: list[slice]
    context_size: int

    @property
    def first_token(self) -> int:
        """Place of its first token among all of the cache."""
        return int(self.chunks[0].start) * self.context_size

    @property
    def end_token(self) -> int:
        """Place after its last token."""
        return int(self.chunks[-1].stop) * self.context_size

    def text_rows(self, text: Text) -> NDArray[np.int64]:
        """Places in the shard of its text rows."""
        return np.flatnonzero(text.documents[self.first_token : self.end_token] >= 0)


@torch.no_grad()
def encode_cache(
    dictionary: Dictionary, cache: ActivationCache, text: Text, work: Work
) -> list[Shard]:
    """Encode each text row once and keep the active entries; finished shards stay as they are.

    A shard's arrays: `row_ends` (token + 1), `columns` and `row_values` by token;
    `column_ends` (d_sae + 1), `places` (token inside the shard) and `values` by feature.
    """
    hook_name = cache.hook(dictionary.hook_name)
    shards = _shards(dictionary, cache, text)
    with progress(text.n_rows, "features", "tok") as bar:
        for shard in shards:
            kept = shard.text_rows(text)
            if not work.has(shard.name):
                x = _rows(cache, hook_name, shard, kept)
                work.save(shard.name, _entries(dictionary, x, kept, shard))
            bar.update(len(kept))
    return shards


def _shards(dictionary: Dictionary, cache: ActivationCache, text: Text) -> list[Shard]:
    chunks = cache.chunks(cache.hook(dictionary.hook_name))
    size = min(SHARD_ROWS, max(1, ROW_BYTES // (4 * dictionary.d_in)))
    size = min(size, int(SHARD_ENTRIES / _sampled_l0(dictionary, cache, text, chunks)))
    found: list[Shard] = []
    members: list[slice] = []
    n_rows = 0
    for chunk in chunks:
        members.append(chunk)
        n_rows += len(Shard("", [chunk], text.context_size).text_rows(text))
        if n_rows >= size or chunk is chunks[-1]:
            found.append(Shard(f"shard-{len(found):05d}", members, text.context_size))
            members, n_rows = [], 0
    return found


def _sampled_l0(
    dictionary: Dictionary, cache: ActivationCache, text: Text, chunks: list[slice]
) -> float:
    # Of the first text rows, and at least one.
    for chunk in chunks:
        shard = Shard("", [chunk], text.context_size)
        if len(kept := shard.text_rows(text)):
            x = _rows(cache, cache.hook(dictionary.hook_name), shard, kept[:_SAMPLE_ROWS])
            active = dictionary.encode_sparse(x.to(dictionary.W_enc.device))
            return max(1.0, len(active.values) / len(x))
    return 1.0


def _rows(
    cache: ActivationCache, hook_name: str, shard: Shard, kept: NDArray[np.int64]
) -> Tensor:
    x = torch.empty(len(kept), cache.d_in(hook_name))
    start, before = 0, 0
    for chunk in shard.chunks:
        end = before + (chunk.stop - chunk.start) * shard.context_size
        stop = int(np.searchsorted(kept, end))
        if stop > start:
            rows = cache.read(hook_name, chunk).flatten(0, 1)
            x[start:stop] = rows[torch.from_numpy(kept[start:stop] - before)]
        start, before = stop, end
    return x


def _entries(
    dictionary: Dictionary, x: Tensor, kept: NDArray[np.int64], shard: Shard
) -> Arrays:
    support, values = dictionary.encode_sparse(x.to(dictionary.W_enc.device))
    counts = np.zeros(shard.end_token - shard.first_token, np.int64)
    counts[kept] = support.row_ends.cpu().diff().numpy()
    return {
        "row_ends": np.concatenate([[0], counts.cumsum()]),
        "columns": support.columns.cpu().numpy(),
        "row_values": values.cpu().float().numpy(),
        "column_ends": support.column_ends.cpu().long().numpy(),
        "places": kept.astype(np.int32)[support.rows_by_column.cpu().numpy()],
        "values": values[support.by_column].cpu().float().numpy(),
    }


def entry_counts(shards: list[Shard], work: Work) -> NDArray[np.int64]:
    """Count the entries of each feature in all shards, (d_sae,)."""
    total: NDArray[np.int64] = sum(  # type: ignore[assignment]
        np.diff(work.open(shard.name).read("column_ends")) for shard in shards
    )
    return total


def blocks(sizes: NDArray[np.int64], most: int, most_members: int) -> list[slice]:
    """Consecutive members with so much size together and so many members, one at least."""
    found, start, total = [], 0, 0
    for member, size in enumerate(sizes.tolist()):
        if member > start and (total + size > most or member - start == most_members):
            found.append(slice(start, member))
            start, total = member, 0
        total += size
    return [*found, slice(start, len(sizes))]


@dataclass(frozen=True, slots=True)
class Entries:
    """The entries of some consecutive features over the whole cache."""

    features: slice
    ends: NDArray[np.int64]
    """(feature + 1): those of the block's feature f are `ends[f]` up to `ends[f + 1]`."""
    tokens: NDArray[np.int64]
    """Places in the cache's flattened tokens, ascending in a feature."""
    values: NDArray[np.float32]


def read_entries(
    features: slice, counts: NDArray[np.int64], shards: list[Shard], work: Work
) -> Entries:
    """Gather the entries of `features` from all shards, `counts` as in `entry_counts`."""
    ends = np.concatenate([[0], counts[features].cumsum()])
    tokens = np.empty(ends[-1], np.int64)
    values = np.empty(ends[-1], np.float32)
    filled = ends[:-1].copy()
    use_threads()
    for shard in shards:
        file = work.open(shard.name)
        column_ends = file.read("column_ends", features.start, features.stop + 1)
        part = int(column_ends[0]), int(column_ends[-1])
        panel_kernels.place_entries(
            column_ends,
            file.read("places", *part),
            file.read("values", *part),
            shard.first_token,
            filled,
            tokens,
            values,
        )
    return Entries(features, ends, tokens, values)


@dataclass(frozen=True, slots=True)
class TokenEntries:
    """The entries of some consecutive tokens."""

    first_token: int
    row_ends: NDArray[np.int64]
    columns: NDArray[np.int32]
    values: NDArray[np.float32]


def read_by_token(shards: list[Shard], work: Work) -> TokenEntries:
    """Join the entries of consecutive shards by token."""
    files = [work.open(shard.name) for shard in shards]
    ends = np.cumsum([0, *(file.length("columns") for file in files)])
    columns, values = np.empty(ends[-1], np.int32), np.empty(ends[-1], np.float32)
    row_ends = [np.zeros(1, np.int64)]
    for file, start, end in zip(files, ends, ends[1:], strict=False):
        columns[start:end] = file.read("columns")
        values[start:end] = file.read("row_values")
        row_ends.append(file.read("row_ends")[1:] + start)
    return TokenEntries(shards[0].first_token, np.concatenate(row_ends), columns, values)
