"""`sae cache VERB`: looking at caches, checking, merging, sampling and exchanging them."""

import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from json import dumps
from typing import Any

import numpy as np

from sae.base.errors import UserError, require
from sae.base.progress import duration, progress, say
from sae.base.provenance import UNKNOWN, digest
from sae.cache.layout import ActivationCache, open_cache
from sae.cache.merge import copy_sequences, merge_caches, random_sequences
from sae.cache.survey import survey
from sae.cache.verify import bytes_to_read, check_chunks
from sae.commands.verbs import Key, Show, Verb, among, run_verb
from sae.core.scaling import SINK_NORM_MULTIPLE
from sae.models.load import load_tokenizer, recorded_config
from sae.reporting.cache_table import printable, size, survey_lines


def run(words: Sequence[str], show: Show) -> int:
    """Run a verb; the exit status: 1 if `verify` has found damage, else 0.

    Args:
        words: what stands behind `sae cache`.
        show: prints a line.

    Raises:
        UserError: for an unknown verb or key, a wrong value, and what the verbs refuse.
    """
    about = "activation caches: folders, or addresses as s3://bucket/x.zarr"
    return run_verb(about, VERBS, words, show)


def _names(word: str) -> list[str]:
    return [name for name in word.strip("[]").split(",") if name]


def _ids(word: str) -> list[int]:
    return [int(name) for name in _names(word)]


# The verbs


def _info(show: Show, location: str, *, json: bool) -> int:
    found = survey(open_cache(location, unfinished=True))
    if json:
        show(dumps(found, indent=2, allow_nan=False))
    else:
        show("\n".join(map(printable, survey_lines(found))))
    return 0


def _verify(show: Show, location: str) -> int:
    cache = open_cache(location, unfinished=True)
    finished = bool(cache.attributes["complete"])
    began, n_bytes, n_chunks, n_wrong = time.perf_counter(), 0, 0, 0
    unwritten: Counter[str] = Counter()
    with progress(bytes_to_read(cache), "verify", "B") as bar:
        for chunk in check_chunks(cache):
            bar.update(chunk.n_bytes)
            n_bytes += chunk.n_bytes
            n_chunks += chunk.n_bytes > 0
            if chunk.missing and not finished:
                unwritten[chunk.array] += 1
            elif chunk.wrong is not None:
                n_wrong += 1
                show(printable(f"{chunk.array}: {chunk.rows}: {chunk.wrong}"))
    seconds = time.perf_counter() - began
    for array, n in unwritten.items():
        show(printable(f"{array}: {n:,} chunks are not written yet"))
    time_taken = f"{seconds:.2g} s" if seconds < 10 else duration(seconds)
    read = (
        f"{size(n_bytes)} in {n_chunks:,} chunks, read in "
        f"{time_taken} at {size(n_bytes / seconds)}/s"
    )
    again = _again(cache)
    if n_wrong:
        plural = "s" if n_wrong > 1 else ""
        show(
            f"damaged: {n_wrong:,} chunk{plural}, see above; {again}: it makes only these anew"
        )
        show(f"read: {read}")
    elif not finished:
        show(f"unfinished, nothing of it damaged: {read}; {again} to complete it")
    else:
        show(f"intact: {read}")
    return int(bool(n_wrong) or not finished)


def _again(cache: ActivationCache) -> str:
    verbs = {
        "merge": "sae cache merge",
        "sample": "sae cache sample",
        "saelens": "sae cache import",
    }
    verb = verbs.get(cache.attributes.get("source", ""), "sae harvest")
    return f"run the same {verb} again"


def _merge(show: Show, out: str, *locations: str) -> int:
    _show_made(show, merge_caches(out, locations))
    return 0


def _show_made(show: Show, cache: ActivationCache) -> None:
    about = cache.attributes
    rows, documents = about["rows"], about["data"]["documents"]
    several = len(about["parts"]) > 1
    shared = f", {documents['shared']:,} of them in more than one cache" if several else ""
    show(
        f"{cache.location}: {rows['n_training']:,} training and {rows['n_held_out']:,} "
        f"held-out sequences, {documents['used']:,} documents{shared}"
    )


def _sample(show: Show, location: str, *, n: int | None, seed: int, out: str | None) -> int:
    cache = open_cache(location)
    require(seed >= 0, f"seed={seed} is negative; give 0 or more")
    if out is not None:
        chosen = random_sequences(cache, 1000 if n is None else n, seed)
        _show_made(show, copy_sequences(out, [(cache, chosen)], source="sample"))
        return 0
    chosen = random_sequences(cache, 5 if n is None else n, seed)
    tokenizer = _tokenizer(cache)
    for sequence in chosen:
        show("\n".join(_context(cache, int(sequence), tokenizer)))
    return 0


def _tokenizer(cache: ActivationCache) -> Any:
    """The tokenizer that made the cache's tokens; None if it cannot be had."""
    record = cache.model
    try:
        tokenizer = load_tokenizer(recorded_config(record, "cpu"))
    except UserError as error:
        say(f"sample: token ids are shown, because {error}")
        return None
    known = cache.attributes["tokenizer_digest"]
    if known not in (UNKNOWN, digest(tokenizer.get_vocab())):
        say(f"sample: token ids are shown, because {record.name} has another tokenizer now")
        return None
    return tokenizer


def _context(cache: ActivationCache, sequence: int, tokenizer: Any) -> Iterator[str]:
    """A sequence's place, documents, norms at every hook, and text."""
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
    shown = ids[there].tolist()
    words = " ".join(map(str, shown)) if tokenizer is None else tokenizer.decode(shown)
    yield textwrap.fill(printable(words), 92, initial_indent="    ", subsequent_indent="    ")
    yield ""


def _norms(norms: Any, bound: float) -> str:
    if not len(norms):
        return "no text"
    least, median, greatest = np.quantile(norms, [0, 0.5, 1])
    return (
        f"norms of {len(norms)} tokens from {least:.4g} to {greatest:.4g}, median "
        f"{median:.4g}, {int((norms > bound).sum())} of them attention sinks"
    )


def _export(
    show: Show, location: str, out: str, *, hook_names: list[str] | None, held_out: bool | None
) -> int:
    from sae.exchange.activations import export_to_hf

    n = export_to_hf(open_cache(location), out, hook_names, held_out=held_out)
    show(f"{out}: {n:,} sequences")
    return 0


def _import(show: Show, folder: str, out: str, *, model: str, **settings: Any) -> int:
    from sae.exchange.activations import import_from_saelens

    cache = import_from_saelens(folder, out, model_name=model, **settings)
    rows = cache.attributes["rows"]
    show(
        f"{out}: {rows['n_training']:,} training and {rows['n_held_out']:,} held-out sequences"
    )
    return 0


_FLAGS = {"true": True, "false": False}
_JSON = Key("json", among(_FLAGS), "true or false", False, "print JSON, with all that is known")
_SAMPLE = (
    Key("n", int, "a whole number", None, "how many; null is 5 to print and 1000 to write"),
    Key("seed", int, "a whole number", 0, "another one draws other sequences"),
    Key("out", str, "a place for a cache", None, "write these sequences as a smaller cache"),
)
_EXPORT = (
    Key("hook_names", _names, "names with commas between", None, "columns; all if null"),
    Key(
        "held_out",
        among({**_FLAGS, "all": None}),
        "true, false or all",
        False,
        "which side: held-out sequences, those for training, or both",
    ),
)
_IMPORT = (
    Key("model", str, "a name", None, "model that the activations are of", required=True),
    Key("held_out_fraction", float, "a number", 0.1, "share that is never trained on"),
    Key("dtype", str, "a precision", "float16", "stored precision, as in sae harvest"),
    Key(
        "special_token_ids", _ids, "numbers with commas between", (), "tokens that are no text"
    ),
)
VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            "sae cache",
            "info",
            "PATH",
            "what is in a cache, where it is from, and its norms",
            "sae cache info runs/default/cache.zarr",
            _info,
            (_JSON,),
        ),
        Verb(
            "sae cache",
            "verify",
            "PATH",
            "read every chunk; status 1 if one is damaged or missing",
            "sae cache verify runs/default/cache.zarr",
            _verify,
        ),
        Verb(
            "sae cache",
            "merge",
            "OUT A B ...",
            "several caches of one model as one",
            "sae cache merge both.zarr runs/one/cache.zarr runs/two/cache.zarr",
            _merge,
        ),
        Verb(
            "sae cache",
            "sample",
            "PATH",
            "random contexts as text, or as a smaller cache",
            "sae cache sample runs/default/cache.zarr n=5 seed=0",
            _sample,
            _SAMPLE,
        ),
        Verb(
            "sae cache",
            "export",
            "PATH OUT",
            "a Hugging Face data set that SAELens trains from",
            "sae cache export runs/default/cache.zarr activations",
            _export,
            _EXPORT,
        ),
        Verb(
            "sae cache",
            "import",
            "SRC OUT",
            "a cache from a data set that SAELens wrote",
            "sae cache import activations runs/mine/cache.zarr model=gpt2",
            _import,
            _IMPORT,
        ),
    )
}
