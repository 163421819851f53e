"""`sae cache VERB`: looking at caches, checking, merging, sampling and exchanging them."""

import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from json import dumps
from typing import Any

import numpy as np

from sae.base.errors import UserError, nearest, require
from sae.base.progress import duration, progress, say
from sae.base.provenance import UNKNOWN, digest
from sae.cache.layout import SINK_NORM_MULTIPLE, ActivationCache, open_cache
from sae.cache.merge import copy_sequences, merge_caches, random_sequences
from sae.cache.survey import survey
from sae.cache.verify import bytes_to_read, check_chunks
from sae.models.load import load_tokenizer
from sae.reporting.cache_table import printable, size, survey_lines
from sae.stages.common import recorded_config

Show = Callable[[str], None]
"""Prints one line on standard output."""


@dataclass(frozen=True, slots=True)
class Key:
    """A `key=value` of a verb."""

    name: str
    parse: Callable[[str], Any]
    """Raises ValueError for a word of another kind."""
    kind: str
    """What `parse` takes, for people."""
    default: Any
    meaning: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Verb:
    """One of the words after `sae cache`."""

    name: str
    places: str
    """Its plain words; `...` at the end says that more may follow."""
    summary: str
    example: str
    run: Callable[..., int]
    """Called with `show`, the plain words and the keys; gives the exit status."""
    keys: tuple[Key, ...] = ()

    @property
    def usage(self) -> str:
        """The command with its words and keys."""
        keys = [f"{k.name}=..." if k.required else f"[{k.name}=...]" for k in self.keys]
        return " ".join(["sae cache", self.name, self.places, *keys])

    def takes(self, n_places: int) -> bool:
        """Whether so many plain words are right."""
        wanted = len(self.places.removesuffix(" ...").split())
        return n_places >= wanted if self.places.endswith("...") else n_places == wanted


def run(words: Sequence[str], show: Show) -> int:
    """Run a verb; the exit status: 1 if `verify` has found damage, else 0.

    Args:
        words: what stands behind `sae cache`.
        show: prints a line.

    Raises:
        UserError: for an unknown verb or key, a wrong value, and what the verbs refuse.
    """
    if not words or words[0] in ("-h", "--help", "help"):
        show("\n".join(_usage()))
        return 0
    verb = VERBS.get(words[0])
    if verb is None:
        near = nearest(words[0], VERBS)
        raise UserError(f"{words[0]} is no verb{near}; there are {', '.join(VERBS)}")
    if "-h" in words or "--help" in words:
        show("\n".join(_help(verb)))
        return 0
    places, values = _parsed(verb, words[1:])
    return verb.run(show, *places, **values)


def _usage() -> Iterator[str]:
    yield "sae cache VERB ...   activation caches: folders, or addresses as s3://bucket/x.zarr"
    yield ""
    for verb in VERBS.values():
        yield f"  {verb.name:<8}{verb.summary}"
        yield f"          {verb.example}"
    yield ""
    yield "sae cache VERB --help   every key of a verb"


def _help(verb: Verb) -> Iterator[str]:
    yield from (verb.usage, "", textwrap.fill(verb.summary, 92), "")
    for key in verb.keys:
        now = "null" if key.default is None else str(key.default)
        yield f"  {key.name}={'...' if key.required else now.lower()}"
        yield textwrap.indent(textwrap.fill(f"{key.meaning}; {key.kind}.", 84), "        ")
    yield f"Example: {verb.example}"


def _parsed(verb: Verb, words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Plain words, and a value for every key."""
    known = {key.name: key for key in verb.keys}
    places: list[str] = []
    values = {key.name: key.default for key in verb.keys}
    given: set[str] = set()
    for word in words:
        name, equals, value = word.partition("=")
        require(not word.startswith("-"), f"{word} is no flag; write {verb.usage}")
        # A path may hold an equals sign as well, but hardly behind a single plain word.
        if not equals or not name.isidentifier():
            places.append(word)
            continue
        if name not in known:
            near = nearest(name, known)
            raise UserError(f"{name} is no key of sae cache {verb.name}{near}; {verb.usage}")
        try:
            values[name] = known[name].parse(value)
        except ValueError as error:
            raise UserError(f"{word}; {name} is {known[name].kind}") from error
        given.add(name)
    needed = {key.name for key in verb.keys if key.required}
    require(
        verb.takes(len(places)) and needed <= given,
        f"{verb.name}: write {verb.usage}, such as: {verb.example}",
    )
    return places, values


def _among(choices: dict[str, Any]) -> Callable[[str], Any]:
    def parse(word: str) -> Any:
        if word.lower() not in choices:
            raise ValueError(word)
        return choices[word.lower()]

    return parse


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
    record = cache.attributes["model"]
    try:
        tokenizer = load_tokenizer(recorded_config(record, "cpu"))
    except UserError as error:
        say(f"sample: token ids are shown, because {error}")
        return None
    known = cache.attributes["tokenizer_digest"]
    if known not in (UNKNOWN, digest(tokenizer.get_vocab())):
        say(f"sample: token ids are shown, because {record['name']} has another tokenizer now")
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
_JSON = Key(
    "json", _among(_FLAGS), "true or false", False, "print JSON, with all that is known"
)
_SAMPLE = (
    Key("n", int, "a whole number", None, "how many; null is 5 to print and 1000 to write"),
    Key("seed", int, "a whole number", 0, "another one draws other sequences"),
    Key("out", str, "a place for a cache", None, "write these sequences as a smaller cache"),
)
_EXPORT = (
    Key("hook_names", _names, "names with commas between", None, "columns; all if null"),
    Key(
        "held_out",
        _among({**_FLAGS, "all": None}),
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
            "info",
            "PATH",
            "what is in a cache, where it is from, and its norms",
            "sae cache info runs/default/cache.zarr",
            _info,
            (_JSON,),
        ),
        Verb(
            "verify",
            "PATH",
            "read every chunk; status 1 if one is damaged or missing",
            "sae cache verify runs/default/cache.zarr",
            _verify,
        ),
        Verb(
            "merge",
            "OUT A B ...",
            "several caches of one model as one",
            "sae cache merge both.zarr runs/one/cache.zarr runs/two/cache.zarr",
            _merge,
        ),
        Verb(
            "sample",
            "PATH",
            "random contexts as text, or as a smaller cache",
            "sae cache sample runs/default/cache.zarr n=5 seed=0",
            _sample,
            _SAMPLE,
        ),
        Verb(
            "export",
            "PATH OUT",
            "a Hugging Face data set that SAELens trains from",
            "sae cache export runs/default/cache.zarr activations",
            _export,
            _EXPORT,
        ),
        Verb(
            "import",
            "SRC OUT",
            "a cache from a data set that SAELens wrote",
            "sae cache import activations runs/mine/cache.zarr model=gpt2",
            _import,
            _IMPORT,
        ),
    )
}
