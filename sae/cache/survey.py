"""What a cache says of itself and what its norms look like, in memory that does not grow."""

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae.base import progress
from sae.cache.layout import ActivationCache, chunk_key, chunk_slices
from sae.cache.store import stored_bytes, stored_keys
from sae.core.row_statistics import QuantileSketch
from sae.core.scaling import SINK_NORM_MULTIPLE
from sae.text.packing import ROWS_A_BLOCK

_BINS = 16
# Norms below are those of rows of zeros.
_SMALLEST = 1e-30


def survey(cache: ActivationCache) -> dict[str, Any]:
    """Return all there is to know about a cache, finished or not, as JSON holds it.

    Norms are those of the training rows that are there. `sink_threshold` is the bound above
    which a row counts as an attention sink; it is an edge of `histogram`.

    Raises:
        UserError: if tokens, documents or norms are damaged.
    """
    about = cache.attributes
    hooks = _surveyed_hooks(cache)
    there = min((h["sequences"] for h in hooks.values()), default=0)
    n_bytes = stored_bytes(cache.location)
    n_tokens = there * cache.context_size
    return {
        "location": cache.location,
        **{k: v for k, v in about.items() if k != "hooks"},
        "cache_digest": cache.digest if about["text_complete"] else None,
        "context_size": cache.context_size,
        "sequences": cache.n_sequences,
        "sequences_there": there,
        "bytes": n_bytes,
        "bytes_per_token": n_bytes / n_tokens if n_tokens else None,
        "hooks": hooks,
    }


def _surveyed_hooks(cache: ActivationCache) -> dict[str, Any]:
    hooks, n = cache.hook_names, cache.n_sequences
    # Training rows by their kind, and the norms of those that are text.
    counts, sketches = {h: Counter[str]() for h in hooks}, {h: QuantileSketch() for h in hooks}
    special = cache.attributes["special_token_ids"]
    n_training = cache.attributes["rows"]["n_training"]
    with progress(n, "norms", "seq") as bar:
        for block in chunk_slices(n, ROWS_A_BLOCK):
            training = (np.arange(block.start, block.stop) < n_training)[:, None]
            padding = cache.read_rows("documents", block) < 0
            marks = np.isin(cache.read_rows("tokens", block), special) & ~padding
            for hook in hooks:
                norms = cache.read_rows(f"norms/{hook}", block)
                there = training & ~np.isnan(norms)
                for kind, rows in (
                    ("training", True),
                    ("padding", padding),
                    ("special", marks),
                ):
                    counts[hook][f"{kind}_rows"] += int((there & rows).sum())
                sketches[hook].add(norms[there & ~padding & ~marks])
            bar.update(block.stop - block.start)
    return {hook: _surveyed(cache, hook, counts[hook], sketches[hook]) for hook in hooks}


def _surveyed(
    cache: ActivationCache, hook: str, counts: dict[str, int], norms: QuantileSketch
) -> dict[str, Any]:
    site = cache.site(hook)
    array = cache.array(f"activations/{hook}")
    keys, chunks = stored_keys(cache.location, f"activations/{hook}"), cache.chunks(hook)
    stored = [c for i, c in enumerate(chunks) if chunk_key(array, i) in keys]
    found = {
        "module": site.module,
        "side": site.side,
        "d_in": site.width,
        "chunks": len(chunks),
        "chunks_there": len(stored),
        "sequences": sum(c.stop - c.start for c in stored),
        **counts,
    }
    if norms.total:
        found |= _norms(norms)
    if cache.attributes["complete"]:
        # The dimension whose mean is largest; a few may rule all norms and distances.
        statistics = cache.statistics(hook)
        i = int(np.abs(statistics["mean"]).argmax())
        found["largest_mean"] = {
            "dimension": i,
            "mean": float(statistics["mean"][i]),
            "standard_deviation": float(np.sqrt(statistics["variance"][i])),
        }
    return found


def _norms(norms: QuantileSketch) -> dict[str, Any]:
    """Figures of norms, right to one part in 4,096; of the mean sinks are left out."""
    (median,) = norms.quantiles(np.array([0.5]))
    threshold = SINK_NORM_MULTIPLE * float(median)
    values, counts = norms.occupied()
    sinks = norms.above(threshold)
    below = np.cumsum(counts) <= norms.total - sinks
    edges = _edges(values, threshold)
    # Zeros, which have no logarithm, are counted in the first bin.
    binned, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges, weights=counts)
    return {
        "mean_norm": float((values * counts)[below].sum() / max(1, counts[below].sum())),
        "median_norm": float(median),
        "least_norm": float(values[0]),
        "greatest_norm": float(values[-1]),
        "sink_threshold": threshold,
        "sink_rows": sinks,
        "histogram": {"edges": edges.tolist(), "counts": binned.astype(int).tolist()},
    }


def _edges(values: NDArray[np.float64], threshold: float) -> NDArray[np.float64]:
    """Edges of equal ratio around all values, the threshold among them if it is inside."""
    positive = values[values > _SMALLEST]
    if not len(positive):
        return np.array([_SMALLEST, 1.0])
    low, high = np.log(positive[[0, -1]])
    zero, step = np.log(threshold), max((high - low) / _BINS, 0.01)
    first, last = np.floor((low - zero) / step), np.ceil((high - zero) / step)
    edges: NDArray[np.float64] = np.exp(
        zero + np.arange(first, max(last, first + 1) + 1) * step
    )
    return edges
