"""The one pass over a cache: every text row encoded once, its active entries kept on disk.

A shard holds the entries of some consecutive chunks twice: by token, and by feature. What
comes after reads either order in pieces whose size does not depend on the number of tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae.analysis.work import ArrayFile, Arrays, Work
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
"""And where activations are wide, so that the rows take no more than this."""
BLOCK_ENTRIES = 16 << 20
"""Entries of the features that are looked at together: 192 MB."""
_SAMPLE_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Text:
    """What a cache's tokens are; arrays are flat and mapped from files of the work folder."""

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
    tokens, documents = (
        np.lib.format.open_memmap(work.folder / f"{name}.npy", "w+", np.int32, shape)
        for name in ("tokens", "documents")
    )
    special = cache.attributes["special_token_ids"]
    counts = np.zeros(0, np.int64)
    seen = np.zeros(0, np.bool_)
    step = max(1, (1 << 20) // shape[1])
    for start in range(0, shape[0], step):
        part = slice(start, min(start + step, shape[0]))
        ids, owners = cache.read_rows("tokens", part), cache.read_rows("documents", part)
        if ids.min() < 0:
            raise UserError(
                f"{cache.location}: tokens are missing in sequences {part.start} to "
                f"{part.stop - 1}; harvest again"
            )
        owners = np.where(np.isin(ids, special), -1, owners)
        tokens[part], documents[part] = ids, owners
        text = owners >= 0
        counts = _added(counts, np.bincount(ids[text], minlength=int(ids.max()) + 1))
        seen = _added(seen, np.bincount(owners[text]) > 0)
    tokens.flush()
    documents.flush()
    return Text(
        _mapped(work, "tokens"),
        _mapped(work, "documents"),
        *shape,
        n_rows=int(counts.sum()),
        n_documents=int(seen.sum()),
        document_end=len(seen),
        counts=counts,
    )


def _added(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """The sum (or) of two vectors of which one may be longer."""
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    longer = longer.copy()
    longer[: len(shorter)] += shorter
    return longer


def _mapped(work: Work, name: str) -> NDArray[np.int32]:
    return np.asarray(np.load(work.folder / f"{name}.npy", mmap_mode="r")).reshape(-1)


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
            kept = np.flatnonzero(text.documents[shard.first_token : shard.end_token] >= 0)
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
        places = slice(chunk.start * text.context_size, chunk.stop * text.context_size)
        n_rows += int((text.documents[places] >= 0).sum())
        if n_rows >= size or chunk is chunks[-1]:
            found.append(Shard(f"shard-{len(found):05d}", members, text.context_size))
            members, n_rows = [], 0
    return found


def _sampled_l0(
    dictionary: Dictionary, cache: ActivationCache, text: Text, chunks: list[slice]
) -> float:
    """Active features a row, at least one, of the first text rows."""
    for chunk in chunks:
        shard = Shard("", [chunk], text.context_size)
        kept = np.flatnonzero(text.documents[shard.first_token : shard.end_token] >= 0)
        if len(kept):
            x = _rows(cache, cache.hook(dictionary.hook_name), shard, kept[:_SAMPLE_ROWS])
            active = dictionary.encode_sparse(x.to(dictionary.W_enc.device))
            return max(1.0, len(active.values) / len(x))
    return 1.0


def _rows(
    cache: ActivationCache, hook_name: str, shard: Shard, kept: NDArray[np.int64]
) -> Tensor:
    """The text rows of a shard, (row, d_in) float32."""
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
    """(d_sae,): entries of each feature in all shards."""
    total: NDArray[np.int64] = sum(  # type: ignore[assignment]
        np.diff(work.open(shard.name).read("column_ends")) for shard in shards
    )
    return total


def feature_blocks(
    counts: NDArray[np.int64], max_entries: int, max_features: int
) -> list[slice]:
    """Consecutive features with so many entries and features together, one at least."""
    found, start, entries = [], 0, 0
    for feature, count in enumerate(counts.tolist()):
        if feature > start and (
            entries + count > max_entries or feature - start == max_features
        ):
            found.append(slice(start, feature))
            start, entries = feature, 0
        entries += count
    return [*found, slice(start, len(counts))]


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
    """Gather the entries of `features` from all shards.

    Args:
        counts: (d_sae,), as `entry_counts` gives them.
    """
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


def read_by_token(shards: list[Shard], work: Work, max_entries: int) -> Iterator[TokenEntries]:
    """All entries by token, as many shards at a time as have so many entries, one at least."""
    files = [work.open(shard.name) for shard in shards]
    group: list[tuple[Shard, ArrayFile]] = []
    entries = 0
    for shard, file in zip(shards, files, strict=True):
        size = file.length("columns")
        if group and entries + size > max_entries:
            yield _joined(group)
            group, entries = [], 0
        group.append((shard, file))
        entries += size
    if group:
        yield _joined(group)


def _joined(group: list[tuple[Shard, ArrayFile]]) -> TokenEntries:
    lengths = [file.length("columns") for _, file in group]
    columns = np.empty(sum(lengths), np.int32)
    values = np.empty(sum(lengths), np.float32)
    row_ends, start = [np.zeros(1, np.int64)], 0
    for (_, file), length in zip(group, lengths, strict=True):
        columns[start : start + length] = file.read("columns")
        values[start : start + length] = file.read("row_values")
        row_ends.append(file.read("row_ends")[1:] + start)
        start += length
    return TokenEntries(group[0][0].first_token, np.concatenate(row_ends), columns, values)
