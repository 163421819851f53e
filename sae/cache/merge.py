"""A new cache from chosen sequences of others, bit for bit; a killed one is gone on with."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae.base import (
    UNKNOWN,
    UserError,
    check_free_space,
    code_version,
    digest,
    digest_bytes,
    progress,
    require,
    say,
)
from sae.cache.create import create_cache, find_cache
from sae.cache.layout import ActivationCache, chunk_slices, open_cache
from sae.cache.store import local_folder, only_writer
from sae.cache.stored import Stored, joined_stored
from sae.cache.text_writer import write_text
from sae.cache.writer import NOT_WRITTEN, CacheWriter, bytes_needed
from sae.text.packing import ROWS_A_BLOCK, RowBlock, TextPlan

Indices = NDArray[np.int64]
"""Sequences of a cache, (sequence,)."""
Part = tuple[ActivationCache, Indices]

_THREADS = 4
# One thread copies so many chunks in a row. Where two caches are cut differently a chunk is
# needed for two of the new ones, and read once for both, but at the ends of a run.
_CHUNKS_A_RUN = 8
_TRAINED_ON, _HELD_OUT = 1, 2
_KEPT = ("model", "tokenizer_digest", "bos_token_id", "special_token_ids")


def merge_caches(
    out: str | Path, locations: Sequence[str | Path], *, source: str = "merge"
) -> ActivationCache:
    """Put all sequences of several different caches in one, as `copy_sequences` does."""
    require(len(locations) >= 2, "give at least two caches to merge")
    caches = [open_cache(location) for location in locations]
    digests = [cache.digest for cache in caches]
    for i, found in enumerate(digests):
        require(
            found not in digests[:i],
            f"{caches[i].location} is the same cache as "
            f"{caches[digests.index(found)].location} (digest {found}); give each once",
        )
    return copy_sequences(out, [(c, np.arange(c.n_sequences)) for c in caches], source=source)


def random_sequences(cache: ActivationCache, n: int, seed: int) -> Indices:
    """Draw `n` sequences, ascending; of either side its share of the cache, at least one."""
    held_out = cache.held_out
    require(n >= 1, f"n={n}; give 1 or more")
    require(
        n <= len(held_out), f"n={n} is more than the {len(held_out)} sequences of the cache"
    )
    draw = np.random.default_rng(seed)
    sides = [np.flatnonzero(held_out == side) for side in (True, False)]
    share = min(max(round(n * len(sides[0]) / len(held_out)), min(1, n - 1)), n - 1)
    n_held_out = min(len(sides[0]), max(share, n - len(sides[1])))
    counts = (n_held_out, n - n_held_out)
    chosen = [draw.choice(s, k, replace=False) for s, k in zip(sides, counts, strict=True)]
    return np.sort(np.concatenate(chosen))


def copy_sequences(out: str | Path, parts: Sequence[Part], *, source: str) -> ActivationCache:
    """Write a new cache from chosen sequences of others; go on with one, or reuse it.

    Training sequences of all parts come first, in the order of the parts, then the held-out
    ones. Documents are counted anew, without those that have no token in a chosen sequence.
    Memory does not grow with the tokens, but by some bytes for every sequence and document.
    `source` is the word that says in the new cache how it was made. Caches that differ in model
    or the like, or a document on both sides of the split, are refused.
    """
    one = parts[0][0]
    kind = _kind(one)
    for other, _ in parts[1:]:
        for what, theirs in _kind(other).items():
            require(
                kind[what] == theirs,
                f"{one.location} and {other.location} differ in their {what}: {kind[what]} and "
                f"{theirs}",
            )
    chosen = _Chosen(parts)
    require(
        chosen.plan.n_training > 0 and chosen.plan.n_held_out > 0,
        f"{chosen.plan.n_training} sequences for training and {chosen.plan.n_held_out} held "
        "out; take some from both sides",
    )
    wanted = digest([[c.digest, digest_bytes([i.astype("<i8").tobytes()])] for c, i in parts])
    with only_writer(out):
        writer = find_cache(out, wanted)
        if writer is not None and writer.intact(verify=True):
            say(f"{source}: {out} is finished already and is reused")
            return open_cache(out)
        if writer is None or not writer.text_intact():
            text = _Text(chosen)
            if writer is None:
                writer = _create(out, parts, chosen.plan, {"digest": wanted, "source": source})
            summary = {"used": len(text.digests), "shared": text.n_shared}
            write_text(writer, text.blocks(), lambda: text.digests, lambda: summary)
        _copy_chunks(chosen, writer, source)
    return open_cache(out)


def _kind(cache: ActivationCache) -> dict[str, object]:
    """Return what must be alike in caches that are put together."""
    about, model = cache.attributes, cache.model
    hooks = sorted(
        f"{site.hook_name} ({site.side} of {site.module}, width {site.width})"
        for site in cache.sites
    )
    # An import does not know the weights; then the name has to do.
    known = model.weight_digest != UNKNOWN
    return {
        "model's weights": model.weight_digest if known else f"unknown ({model.hub_id})",
        "tokenizer": about["tokenizer_digest"],
        "special tokens": about["special_token_ids"],
        "hooks": ", ".join(hooks),
        "context_size": cache.context_size,
        "dtype": cache.dtype,
        "held_out_fraction": cache.text.held_out_fraction,
    }


class _Chosen:
    """Which sequence of which cache stands where in the new one, (sequence,) both."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.caches = [cache for cache, _ in parts]
        part = np.repeat(np.arange(len(parts), dtype=np.int32), [len(i) for _, i in parts])
        index = np.concatenate([i for _, i in parts])
        held_out = np.concatenate([cache.held_out[i] for cache, i in parts])
        order = np.argsort(held_out, kind="stable")
        self.part, self.index = part[order], index[order]
        n = int(held_out.sum())
        self.plan = TextPlan(len(order) - n, n, self.caches[0].context_size)

    def groups(self, name: str, rows: slice) -> Iterator[tuple[int, slice, Indices]]:
        """For some rows of the new cache: part, a chunk of an array of it, places therein."""
        arrays = [cache.array(name) for cache in self.caches]
        part, index = self.part[rows], self.index[rows]
        chunk = index // np.array([array.chunks[0] for array in arrays])[part]
        changes = (np.diff(part) != 0) | (np.diff(chunk) != 0)
        for places in np.split(np.arange(len(part)), np.flatnonzero(changes) + 1):
            of = int(part[places[0]])
            size, n = arrays[of].chunks[0], self.caches[of].n_sequences
            start = int(chunk[places[0]]) * size
            yield of, slice(start, min(start + size, n)), index[places] - start


class _Text:
    """The text of the chosen sequences, its documents counted anew."""

    def __init__(self, chosen: _Chosen) -> None:
        self._chosen = chosen
        found = [cache.document_digests for cache in chosen.caches]
        owner = np.repeat(np.arange(len(found)), [len(d) for d in found])
        # The documents of each cache are counted on from those of the caches before it.
        self._first = np.searchsorted(owner, np.arange(len(found)))
        sides = np.zeros(len(owner), dtype=np.uint8)
        for held_out, rows in self._blocks():
            documents = self._documents(rows)
            sides[documents[documents >= 0]] |= _HELD_OUT if held_out else _TRAINED_ON
        used = sides > 0
        self._new_index = (np.cumsum(used) - 1).astype(np.int32)
        self.digests = np.concatenate(found)[used]
        of_each = np.split(self.digests, np.flatnonzero(np.diff(owner[used])) + 1)
        _, caches = np.unique(np.concatenate([*map(np.unique, of_each)]), return_counts=True)
        self.n_shared = int((caches > 1).sum())
        if len(found) > 1:
            self._check_split(sides[used])

    def _check_split(self, sides: NDArray[np.uint8]) -> None:
        trained_on, held_out = (self.digests[sides & b > 0] for b in (_TRAINED_ON, _HELD_OUT))
        both = np.intersect1d(trained_on, held_out)
        if len(both):
            names = ", ".join(cache.location for cache in self._chosen.caches)
            raise UserError(
                f"{len(both)} documents belong to the training text in one of {names} and "
                "to the held-out text in another; harvest all caches with the same split"
            )

    def blocks(self) -> Iterator[RowBlock]:
        for held_out, rows in self._blocks():
            tokens = np.concatenate([ids for _, ids in self._rows("tokens", rows)])
            old = self._documents(rows)
            yield RowBlock(held_out, tokens, np.where(old >= 0, self._new_index[old], old))

    def _documents(self, rows: slice) -> NDArray[np.int32]:
        found = self._rows("documents", rows)
        first = self._first.astype(np.int32)
        return np.concatenate(
            [np.where(old >= 0, old + first[part], old) for part, old in found]
        )

    def _blocks(self) -> Iterator[tuple[bool, slice]]:
        n = self._chosen.plan.n_training
        for held_out, first, many in ((False, 0, n), (True, n, self._chosen.plan.n_held_out)):
            for block in chunk_slices(many, ROWS_A_BLOCK):
                yield held_out, slice(first + block.start, first + block.stop)

    def _rows(self, name: str, rows: slice) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """Part and rows of tokens or documents, in their order."""
        for part, chunk, places in self._chosen.groups(name, rows):
            cache = self._chosen.caches[part]
            found = cache.read_rows(name, chunk)[places]
            require(
                not bool((found == NOT_WRITTEN[name]).any()),
                f"{cache.location}: a chunk of {name} is missing in sequences {chunk.start} "
                f"to {chunk.stop - 1}; harvest again",
            )
            yield part, found


def _create(
    out: str | Path, parts: Sequence[Part], plan: TextPlan, about: dict[str, Any]
) -> CacheWriter:
    first, sites = parts[0][0].attributes, parts[0][0].sites
    folder = local_folder(out)
    if folder is not None:
        n_tokens = plan.n_sequences * plan.context_size
        widths = [site.width for site in sites]
        check_free_space(folder, bytes_needed(n_tokens, widths, first["dtype"]))
    return create_cache(
        out,
        sites,
        plan,
        dtype=first["dtype"],
        compression=first["compression"],
        attributes={
            **about,
            **{key: first[key] for key in _KEPT if key in first},
            "data": _data([cache.attributes["data"] for cache, _ in parts]),
            "one_document_a_row": all(c.attributes.get("one_document_a_row") for c, _ in parts),
            "parts": [_origin(cache, len(indices)) for cache, indices in parts],
            "code_version": code_version(),
        },
    )


def _data(sources: list[dict[str, Any]]) -> dict[str, Any]:
    bare = [{k: v for k, v in s.items() if k != "documents"} for s in sources]
    if all(one == bare[0] for one in bare):
        return bare[0]
    names = dict.fromkeys(str(one["name"]) for one in bare)
    return {"name": " + ".join(names), "held_out_fraction": bare[0].get("held_out_fraction")}


def _origin(cache: ActivationCache, n: int) -> dict[str, Any]:
    kept = {k: v for k, v in cache.attributes.items() if k in ("data", "parts", "code_version")}
    return {"digest": cache.digest, "sequences": n, "of": cache.n_sequences, **kept}


def _copy_chunks(chosen: _Chosen, writer: CacheWriter, source: str) -> None:
    missing = writer.missing(verify=True)
    runs = [missing[i : i + _CHUNKS_A_RUN] for i in range(0, len(missing), _CHUNKS_A_RUN)]
    n = chosen.plan.n_sequences
    done = n - sum(chunk.stop - chunk.start for chunk in missing)
    with progress(n, source, "seq", done) as bar, ThreadPoolExecutor(_THREADS) as threads:
        copying = [threads.submit(_copy_run, chosen, writer, run) for run in runs]
        try:
            for run in as_completed(copying):
                bar.update(run.result())
        finally:
            for run in copying:
                run.cancel()
    writer.finish()


def _copy_run(chosen: _Chosen, writer: CacheWriter, run: list[slice]) -> int:
    held: dict[str, tuple[tuple[int, int], Stored]] = {}
    for chunk in run:
        found = [(hook, _gather(chosen, hook, chunk, held)) for hook in writer.hooks]
        writer.write_stored(chunk, found)
    return sum(chunk.stop - chunk.start for chunk in run)


def _gather(
    chosen: _Chosen,
    hook: str,
    rows: slice,
    held: dict[str, tuple[tuple[int, int], Stored]],
) -> Stored:
    """Return rows of the new cache at a hook; `held` is the chunk read last of each old one."""
    found = []
    for part, chunk, places in chosen.groups(f"activations/{hook}", rows):
        key = (part, chunk.start)
        if hook not in held or held[hook][0] != key:
            held[hook] = (key, chosen.caches[part].read_stored(hook, chunk))
        stored, factors = held[hook][1]
        found.append((stored[places], None if factors is None else factors[places]))
    return joined_stored(found)
