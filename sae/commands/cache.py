"""`sae cache info | verify | merge | sample | export | import`."""

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from sae.base import UNKNOWN, UserError, digest, duration, progress, require, say, show, size
from sae.cache.layout import ActivationCache, open_cache
from sae.cache.merge import copy_sequences, merge_caches, random_sequences
from sae.cache.survey import survey
from sae.cache.verify import bytes_to_read, check_chunks
from sae.exchange.activations import export_to_hf, import_from_saelens
from sae.models import load_tokenizer, recorded_config
from sae.pages.cache_table import printable, sequence_lines, sides, survey_lines


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheInfoConfig:
    """Show what is in a cache, where it is from, and the norms of its activations."""

    cache: str
    """The cache: a folder, or an address in an object store such as `s3://bucket/x.zarr`."""
    json: bool = False
    """Print everything that is known as JSON, instead of a table."""


def info(config: CacheInfoConfig) -> None:
    """Print what is known of a cache, also of an unfinished one."""
    found = survey(open_cache(config.cache, unfinished=True))
    table = map(printable, survey_lines(found))
    show(json.dumps(found, indent=2, allow_nan=False) if config.json else "\n".join(table))


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheVerifyConfig:
    """Read every chunk of a cache and compare it with its checksum.

    The command names each chunk that is damaged or missing. Its exit status is 1 if there is
    such a chunk, or if the cache is not finished.
    """

    cache: str
    """The cache: a folder, or an address in an object store such as `s3://bucket/x.zarr`."""


def verify(config: CacheVerifyConfig) -> bool:
    """Print what is damaged, and return whether the cache is finished and whole."""
    cache = open_cache(config.cache, unfinished=True)
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
    taken = f"{seconds:.2g} s" if seconds < 10 else duration(seconds)
    speed = f"{taken} at {size(n_bytes / seconds)}/s"
    read = f"{size(n_bytes)} in {n_chunks:,} chunks, read in {speed}"
    verbs = {"merge": "cache merge", "sample": "cache sample", "saelens": "cache import"}
    again = f"run the same sae {verbs.get(cache.attributes.get('source', ''), 'harvest')} again"
    if n_wrong:
        chunks = f"{n_wrong:,} chunk{'s' if n_wrong > 1 else ''}"
        show(f"damaged: {chunks}, see above; {again}: it makes only these anew\nread: {read}")
    elif not finished:
        show(f"unfinished, nothing of it damaged: {read}; {again} to complete it")
    else:
        show(f"intact: {read}")
    return finished and not n_wrong


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheMergeConfig:
    """Make one cache of several that have the same model, tokenizer and hooks."""

    out: str
    """Where to write the new cache."""
    caches: list[str]
    """The caches to merge, two or more."""


def merge(config: CacheMergeConfig) -> ActivationCache:
    """Write the merged cache, or go on with it, and say what is in it."""
    return _shown(merge_caches(config.out, config.caches))


def _shown(cache: ActivationCache) -> ActivationCache:
    documents, several = (
        cache.attributes["data"]["documents"],
        len(cache.attributes["parts"]) > 1,
    )
    shared = f", {documents['shared']:,} of them in more than one cache" if several else ""
    show(f"{cache.location}: {sides(cache)}, {documents['used']:,} documents{shared}")
    return cache


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSampleConfig:
    """Show random sequences of a cache as text, or write them as a smaller cache."""

    cache: str
    """The cache: a folder, or an address in an object store such as `s3://bucket/x.zarr`."""
    n: int | None = None
    """Number of sequences. By default 5 are shown, or 1000 are written."""
    seed: int = 0
    """Seed of the random choice of sequences."""
    out: str | None = None
    """Where to write the sequences as a smaller cache. By default they are shown instead."""


def sample(config: CacheSampleConfig) -> ActivationCache | None:
    """Print random sequences and return None, or return the smaller cache of them."""
    cache = open_cache(config.cache)
    usual = 5 if config.out is None else 1000
    chosen = random_sequences(cache, usual if config.n is None else config.n, config.seed)
    if config.out is not None:
        return _shown(copy_sequences(config.out, [(cache, chosen)], source="sample"))
    decode = _decoder(cache)
    for sequence in chosen:
        show("\n".join(sequence_lines(cache, int(sequence), decode)))
    return None


def _decoder(cache: ActivationCache) -> Callable[[list[int]], str]:
    """Return what turns the cache's tokens into text, or into numbers without a tokenizer."""
    try:
        tokenizer = load_tokenizer(recorded_config(cache.model, "cpu"))
        same = cache.attributes["tokenizer_digest"] in (UNKNOWN, digest(tokenizer.get_vocab()))
        require(same, f"{cache.model.name} has a different tokenizer now")
    except UserError as error:
        say(f"sample: token ids are shown, because {error}")
        return lambda ids: " ".join(map(str, ids))
    return lambda ids: str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheExportConfig:
    """Write a cache as a Hugging Face data set that SAELens trains from."""

    cache: str
    """The cache: a folder, or an address in an object store such as `s3://bucket/x.zarr`."""
    out: str
    """The folder to write."""
    hook_names: list[str] | None = None
    """Hooks whose activations are written, each as a column. By default these are all hooks of
    the cache."""
    held_out: bool | str = False
    """Which sequences are written: those for training (false), those that are held out of
    training (true), or both (all)."""

    def __post_init__(self) -> None:
        require(
            isinstance(self.held_out, bool) or self.held_out == "all",
            f"held_out={self.held_out}: give true, false or all",
        )


def export(config: CacheExportConfig) -> int:
    """Write the data set, and return the number of its sequences."""
    side = config.held_out if isinstance(config.held_out, bool) else None
    n = export_to_hf(open_cache(config.cache), config.out, config.hook_names, held_out=side)
    show(f"{config.out}: {n:,} sequences")
    return n


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheImportConfig:
    """Make a cache from a data set that SAELens's CacheActivationsRunner wrote."""

    folder: str
    """The folder of the data set."""
    out: str
    """Where to write the new cache."""
    model_name: str
    """Model that the activations come from: a local folder, or a Hub id such as `gpt2`."""
    held_out_fraction: float = 0.1
    """Share of the sequences that are kept out of training."""
    dtype: str = "float16"
    """Precision in which activations are stored: float16, bfloat16, float32 or int8."""
    special_token_ids: list[int] = field(default_factory=list)
    """Ids of tokens that are no text, such as the one at the beginning. No dictionary is
    trained on them."""


def import_(config: CacheImportConfig) -> ActivationCache:
    """Write the cache, or go on with it, and say what is in it."""
    cache = import_from_saelens(**asdict(config))
    show(f"{config.out}: {sides(cache)}")
    return cache
