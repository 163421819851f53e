"""How well rows are shuffled: the cache reader, the live buffer and SAELens's mixing buffer.

A cache of real text gives the documents and the geometry: chunks, rows a chunk, bytes a row.
Beside it stands a little one of the same sequences whose activations are the places of the
rows, (sequence, position), so that one can tell which rows a batch is made of. Its pools are
smaller as its rows are, so the same chunks are held together; a batch of both is compared.

- Documents: distinct documents in a batch of 4,096, as a share of those that a uniform draw of
  as many rows would have.
- Correlation of the place in the text of two rows, one row and one batch apart in the order in
  which they are given: 0 for a perfect shuffle, 1 for the order of the text.
"""

import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import sae
from benchmarks.common import RUN, write_results
from benchmarks.saelens_cache import saelens_store
from sae.cache.create import create_cache
from sae.cache.layout import ActivationCache, open_cache
from sae.cache.text_writer import write_text
from sae.exchange.activations import export_to_hf
from sae.models import Site
from sae.rows.shuffle import MixingBuffer, Rows, RowSelection, select_rows, shuffled_batches
from sae.text.packing import RowBlock, TextPlan

FOLDER = RUN / "shuffle"
# Only the embedding runs.
HOOK = "blocks.0.hook_resid_pre"
N_TOKENS = 1_000_000
BATCH = 4_096
POOLS = {"default pool, 2 GB": 2 << 30, "256 MB pool": 256 << 20, "64 MB pool": 64 << 20}
LIVE_ROWS, LIVE_BLOCK = 262_144, 1_024
# Sequences in its buffer: few (its default of 20 is less than a batch and refused), as many
# rows as with its tutorial's settings, and as many as our live buffer; it reads 32 at a time.
SAELENS_BUFFERS = (64, 256, 2_048)
_NUMBER_BYTES = 8
_MOST_LEFT_BEHIND = 2 << 30


def main() -> None:
    """Shares and correlations over one epoch of each."""
    real = sae.harvest(run=str(FOLDER), hook_names=[HOOK], n_tokens=N_TOKENS)
    keep = select_rows(real, HOOK, held_out=False).keep
    places = _places(real)
    selection = RowSelection(places, (HOOK,), keep)
    _check_same_rows(RowSelection(real, (HOOK,), keep), selection)
    exported = FOLDER / "saelens"
    shutil.rmtree(exported, ignore_errors=True)
    export_to_hf(places, exported)
    text = _Text(real, keep)
    orders = {
        **{f"cache, {name}": _pooled(selection, size) for name, size in POOLS.items()},
        f"live, {LIVE_ROWS:,} rows mixed": _live(keep),
        **{
            f"SAELens, {n:,} sequences mixed ({n * 128:,} rows)": _saelens(real, exported, n)
            for n in SAELENS_BUFFERS
        },
    }
    n_batches = text.n_rows // BATCH
    rows = []
    for name, batches in orders.items():
        rows.append({"order": name, **text.figures(list(islice(batches, n_batches)))})
        print(rows[-1], flush=True)
    title = (
        f"Shuffle of {text.n_rows:,} rows of {text.n_documents:,} documents, batches of "
        f"{BATCH:,} with {text.expected:,.0f} documents if drawn uniformly"
    )
    write_results("shuffle", title, rows)
    _clean_up(exported)


def _clean_up(exported: Path) -> None:
    shutil.rmtree(exported)
    shutil.rmtree(FOLDER / "places.zarr")
    if sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file()) > _MOST_LEFT_BEHIND:
        shutil.rmtree(FOLDER)


def _places(real: ActivationCache) -> ActivationCache:
    """Make a cache of the same sequences and chunks whose rows are their own places."""
    path = FOLDER / "places.zarr"
    shutil.rmtree(path, ignore_errors=True)
    n, context = real.tokens.shape
    held_out = real.held_out
    plan = TextPlan(int((~held_out).sum()), int(held_out.sum()), context)
    shared = ("model", "data", "tokenizer_digest", "special_token_ids", "bos_token_id")
    about = {key: real.attributes[key] for key in shared} | {"digest": "places"}
    shape = Site(HOOK, HOOK, "output", 2)
    writer = create_cache(path, [shape], plan, dtype="float32", attributes=about)
    tokens, documents = real.tokens, real.documents
    blocks = [
        RowBlock(side, tokens[held_out == side], documents[held_out == side])
        for side in (False, True)
    ]
    write_text(writer, blocks, lambda: real.document_digests)
    rows = torch.stack(torch.meshgrid(torch.arange(n), torch.arange(context), indexing="ij"), 2)
    for chunk in writer.chunks():
        writer.write(chunk, {HOOK: rows[chunk].float()})
    writer.finish()
    found = open_cache(path)
    if found.chunks(HOOK) != real.chunks(HOOK):
        raise RuntimeError("the chunks of both caches differ")
    return found


def _check_same_rows(real: RowSelection, places: RowSelection) -> None:
    """Check that a batch of the real cache is the rows that the little one names."""
    size = POOLS["64 MB pool"]
    (batch,) = next(shuffled_batches(real, BATCH, seed=0, pool_bytes=size))
    sequence, position = next(_pooled(places, size)).long().unbind(1)
    for i in range(0, BATCH, BATCH // 64):
        there = slice(int(sequence[i]), int(sequence[i]) + 1)
        if not torch.equal(real.cache.read(HOOK, there)[0, position[i]], batch[i]):
            raise RuntimeError("the two caches are read in different orders")


def _pooled(selection: RowSelection, real_pool_bytes: int) -> Iterator[Tensor]:
    """Batches of places, with pools of as many chunks as the real rows have."""
    real_row_bytes = 576 * 2
    size = real_pool_bytes * _NUMBER_BYTES // real_row_bytes
    batches = shuffled_batches(selection, BATCH, seed=0, pool_bytes=size)
    return (places for (places,) in batches)


def _live(keep: NDArray[np.bool_]) -> Iterator[Tensor]:
    """Return the order of training beside the model: that of the text, through its buffer."""
    places = torch.from_numpy(np.argwhere(keep))

    def blocks() -> Iterator[Rows]:
        while True:
            yield from ((part,) for part in torch.split(places, LIVE_BLOCK))

    buffer, endless = MixingBuffer(LIVE_ROWS, seed=0), blocks()
    while True:
        yield buffer.batch(endless, BATCH)[0]


def _saelens(real: ActivationCache, exported: Path, n_sequences: int) -> Iterator[Tensor]:
    # Its permutations are unseeded.
    torch.manual_seed(0)
    return saelens_store(
        exported,
        2,
        HOOK,
        BATCH,
        n_batches_in_buffer=n_sequences,
        store_batch_size_prompts=32,
        exclude_special_tokens=torch.tensor(real.attributes["special_token_ids"]),
    )


class _Text:
    """The rows that are shuffled, and the documents that they are of."""

    def __init__(self, cache: ActivationCache, keep: NDArray[np.bool_]) -> None:
        self._documents = cache.documents
        counts = np.bincount(self._documents[keep])
        self.n_documents = int((counts > 0).sum())
        self.n_rows = int(keep.sum())
        self.expected = _expected_documents(counts[counts > 0])

    def figures(self, batches: list[Tensor]) -> dict[str, object]:
        """Return what a table says of an order."""
        sequences, positions = torch.stack(batches).long().numpy().transpose(2, 0, 1)
        documents = self._documents[sequences, positions]
        distinct = np.array([len(np.unique(batch)) for batch in documents])
        order = sequences.ravel().astype(np.float64)
        return {
            "documents in a batch": f"{distinct.mean():,.0f}",
            "share of a uniform draw's": f"{distinct.mean() / self.expected:.2%}",
            "least share": f"{distinct.min() / self.expected:.2%}",
            "correlation at lag 1": f"{_correlation(order, 1):.3f}",
            "correlation at lag one batch": f"{_correlation(order, BATCH):.3f}",
        }


def _expected_documents(counts: NDArray[np.int64]) -> float:
    """Distinct documents in `BATCH` rows drawn without replacement."""

    def falling(n: Tensor) -> Tensor:
        """Return the logarithm of n (n - 1) ... (n - BATCH + 1)."""
        return torch.lgamma(n + 1) - torch.lgamma(n - BATCH + 1)

    n = torch.from_numpy(counts).double()
    total = n.sum()
    return float((1 - (falling(total - n) - falling(total)).exp()).sum())


def _correlation(order: NDArray[np.float64], lag: int) -> float:
    return float(np.corrcoef(order[:-lag], order[lag:])[0, 1])


if __name__ == "__main__":
    main()
