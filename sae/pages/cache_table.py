"""What is in a cache, for people: its survey as a table, its sequences as text."""

import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sae.base import size
from sae.cache.layout import ActivationCache
from sae.core.scaling import SINK_NORM_MULTIPLE

_WIDTH = 40
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def printable(text: str) -> str:
    """`text` with everything escaped that a terminal would not print but obey."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def survey_lines(found: dict[str, Any]) -> Iterator[str]:
    """Return the lines of the table of a `survey`, whose texts are not yet printable."""
    yield f"{found['location']}: {_state(found)}"
    yield ""
    for name, value in _about(found).items():
        yield f"{name:<12}{value}"
    for part in found.get("parts", []):
        yield from _part(part)
    for hook, about in found["hooks"].items():
        yield ""
        yield from _hook(hook, about)


def _state(found: dict[str, Any]) -> str:
    there = "complete"
    if not found["complete"]:
        chunks = [(h["chunks_there"], h["chunks"]) for h in found["hooks"].values()]
        done, of = min(chunks)
        text = "all of its text" if found["text_complete"] else "its text unfinished"
        there = f"unfinished, {done:,} of {of:,} chunks there, {text}"
    each = found["bytes_per_token"]
    per_token = f", {each:,.1f} bytes a token" if each is not None else ""
    return f"{there}; {size(found['bytes'])} on disk{per_token}"


def _about(found: dict[str, Any]) -> dict[str, str]:
    model, data, rows = found["model"], found["data"], found["rows"]
    n, context = found["sequences"], found["context_size"]
    fraction = data.get("held_out_fraction")
    held_out = "" if fraction is None else f", held_out_fraction={fraction:g}"
    special = ", ".join(map(str, found["special_token_ids"])) or "none"
    compression = found["compression"].replace("none", "not compressed")
    source = found.get("source", "harvest")
    return {
        "model": f"{_model(model)}, digest {model['weight_digest']}",
        "tokenizer": f"digest {found['tokenizer_digest']}; tokens that are no text: {special}",
        "text": f"{_source(data)}, digest {found.get('data_digest', 'not yet known')}",
        "documents": _documents(data.get("documents"), found.get("one_document_a_row", False)),
        "sequences": f"{n:,} of {context:,} tokens, {n * context:,} in all",
        "split": f"{rows['n_training']:,} training, {rows['n_held_out']:,} held out{held_out}",
        "stored": f"{found['dtype']}, {compression}, format {found['format_version']}",
        "digest": found["cache_digest"] or "not yet known",
        "made by": f"sae-atlas {found.get('code_version', 'of unknown version')}, {source}",
    }


def _model(model: dict[str, Any]) -> str:
    name, hub_id = model.get("name", "unknown"), model.get("hub_id")
    said = [name if hub_id in (None, name) else f"{name} ({hub_id})"]
    said += [f"revision {model['revision']}"] if model.get("revision") else []
    said += [f"run in {model['dtype']}"] if model.get("dtype") else []
    return ", ".join(said)


def _source(data: dict[str, Any]) -> str:
    keys = ("subset", "split", "column", "separator", "one_document_a_line", "on_error")
    more = ", ".join(f"{key} {data[key]}" for key in keys if data.get(key))
    return f"{data['name']} ({more})" if more else str(data["name"])


def _documents(counts: dict[str, int] | None, one_a_row: bool) -> str:
    if not counts:
        return "not counted yet"
    said = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items())
    return f"{said}; {'one a row, padded' if one_a_row else 'packed end to end'}"


def _part(part: dict[str, Any], depth: int = 0) -> Iterator[str]:
    indent = "  " * depth
    yield (
        f"{'':<12}{indent}{part['sequences']:,} of the {part['of']:,} sequences of cache "
        f"{part['digest']}, text {_source(part['data'])}"
    )
    for inner in part.get("parts", []):
        yield from _part(inner, depth + 1)


def _hook(name: str, about: dict[str, Any]) -> Iterator[str]:
    n = about["training_rows"]
    yield f"{name}   {about['side']} of {about['module']}, width {about['d_in']:,}"
    if "median_norm" not in about:
        yield "  no training rows are there yet"
        return
    out = about["sink_rows"]
    kinds = {"special tokens": about["special_rows"], "padding": about["padding_rows"]}
    left_out = [f"{k / n:.2%} {kind}" for kind, k in kinds.items() if k or kind != "padding"]
    yield (
        f"  norm        mean {about['mean_norm']:.4g} without sinks, median "
        f"{about['median_norm']:.4g}, from {about['least_norm']:.4g} to "
        f"{about['greatest_norm']:.4g}"
    )
    yield (
        f"  left out    {', '.join(left_out)}, {out / n:.2%} attention sinks, of {n:,} "
        "training rows"
    )
    if largest := about.get("largest_mean"):
        yield (
            f"  largest     mean {largest['mean']:.4g} in dimension {largest['dimension']}, "
            f"standard deviation {largest['standard_deviation']:.4g}"
        )
    yield from _histogram(about)


def _histogram(about: dict[str, Any]) -> Iterator[str]:
    edges, counts = about["histogram"]["edges"], about["histogram"]["counts"]
    threshold, sinks = about["sink_threshold"], about["sink_rows"]
    said = f"  ──── {threshold:.4g} is ten times the median: {sinks:,} rows above are sinks"
    yield "  rows by their norm"
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        if low >= threshold * (1 - 1e-9) and said:
            yield said
            said = ""
        # What is not zero is seen.
        eighths = max(round(count / max(counts) * _WIDTH * 8), int(count > 0))
        bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
        yield f"  {low:>9.4g} to {high:<9.4g} {bar:<{_WIDTH}} {count:,}".rstrip()
    if said:
        yield said


def sides(cache: ActivationCache) -> str:
    """Return how many sequences of a cache are for training, and how many are held out."""
    rows = cache.attributes["rows"]
    return f"{rows['n_training']:,} training and {rows['n_held_out']:,} held-out sequences"


def sequence_lines(
    cache: ActivationCache, sequence: int, decode: Callable[[list[int]], str]
) -> Iterator[str]:
    """Yield a sequence's place, documents, norms at every hook, and text, all printable."""
    at = slice(sequence, sequence + 1)
    (ids,), (documents,) = cache.read_rows("tokens", at), cache.read_rows("documents", at)
    side = "held out" if cache.held_out[sequence] else "training"
    there = documents >= 0
    numbers = list(dict.fromkeys(documents[there].tolist()))
    digests = cache.document_digests[numbers]
    named = ", ".join(f"{i} ({int(d):016x})" for i, d in zip(numbers, digests, strict=True))
    plural = "s" if len(numbers) > 1 else ""
    yield f"sequence {sequence}, {side}, document{plural} {named}"
    text = there & ~np.isin(ids, cache.attributes["special_token_ids"])
    for hook in cache.hook_names:
        (norms,) = cache.read_rows(f"norms/{hook}", at)
        bound = SINK_NORM_MULTIPLE * cache.statistics(hook)["norm_quantiles"][50]
        yield printable(f"  {hook}: {_norms(norms[text], bound)}")
    words = decode(ids[there].tolist())
    yield textwrap.fill(printable(words), 92, initial_indent="    ", subsequent_indent="    ")
    yield ""


def _norms(norms: np.ndarray, bound: float) -> str:
    if not len(norms):
        return "no text"
    least, median, greatest = np.quantile(norms, [0, 0.5, 1])
    return (
        f"norms of {len(norms)} tokens from {least:.4g} to {greatest:.4g}, median "
        f"{median:.4g}, {int((norms > bound).sum())} of them attention sinks"
    )
