"""`sae analyze`: how often every feature of a dictionary fires, where, and what it promotes."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sae.analysis.atlas import Atlas, LogitEffects, context_rows, write_atlas
from sae.analysis.features import Context, feature_statistics, top_contexts
from sae.base.errors import require
from sae.base.files import check_writable
from sae.base.progress import say
from sae.base.provenance import code_version, digest
from sae.cache.layout import RUN_CACHE, cache_location, open_cache
from sae.cache.reader import RowSelection
from sae.dictionary import Dictionary
from sae.models.hooks import find_hook, writes_to_stream
from sae.models.load import LanguageModel, resolve_device
from sae.models.unembed import extreme_logits, token_strings, unembedding
from sae.stages.common import check_same_origin, named_dictionary, recorded_model


@dataclass(frozen=True, kw_only=True, slots=True)
class AnalyzeConfig:
    """Look at every feature of a dictionary: density, activations, contexts, logits."""

    run: str = "runs/default"
    """Folder of the pipeline; the atlas goes to `{run}/atlas/{dictionary}`."""
    cache: str = RUN_CACHE
    """Cache to look in, all its text rows."""
    dictionary: str | None = None
    """Name of the dictionary; may be left out if the run has one."""
    n_contexts: int = 10
    """Top contexts to keep of each feature, at most one a sequence."""
    context_radius: int = 16
    """Tokens to show on either side of the activation."""
    n_logits: int = 10
    """Tokens to list that a feature pushes up, and as many that it pushes down."""
    device: str = "auto"
    """`cpu`, `cuda`, ...; `auto` takes a GPU when there is one."""

    def __post_init__(self) -> None:
        for name in ("n_contexts", "n_logits"):
            value = getattr(self, name)
            require(value >= 1, f"{name}={value}; give 1 or more")
        require(self.context_radius >= 0, f"context_radius={self.context_radius} is negative")

    @property
    def cache_location(self) -> str:
        """The cache that is read."""
        return cache_location(self.run, self.cache)


def run(config: AnalyzeConfig) -> Atlas:
    """Make the atlas, or reuse one made from the same dictionary, cache and settings."""
    check_writable(Path(config.run) / "atlas")
    cache = open_cache(config.cache_location)
    name, dictionary = named_dictionary(Path(config.run), config.dictionary)
    check_same_origin(name, dictionary, cache)
    folder = Path(config.run) / "atlas" / name
    sizes = [config.n_contexts, config.context_radius, config.n_logits]
    wanted = digest([cache.digest, dictionary.digest, sizes])
    if folder.exists() and Atlas(folder).manifest.get("digest") == wanted:
        say(f"analyze: {folder} is there already, reused")
        return Atlas(folder)
    dictionary = dictionary.to(resolve_device(config.device))
    rows = RowSelection(cache, dictionary.hook_name, cache.text_rows())
    statistics = feature_statistics(dictionary, rows, config.n_contexts)
    contexts = top_contexts(dictionary, rows, statistics, config.context_radius)
    model = recorded_model(cache.attributes["model"], config.device)
    tokens = torch.from_numpy(cache.tokens)
    manifest = {
        "digest": wanted,
        "dictionary": name,
        "dictionary_digest": dictionary.digest,
        "model_name": dictionary.model_name,
        "hook_name": dictionary.hook_name,
        "hook_name_out": dictionary.hook_name_out,
        "cache_digest": cache.digest,
        "n_rows": statistics.n_rows,
        "n_dead": int((statistics.fired == 0).sum()),
        "code_version": code_version(),
    }
    return write_atlas(
        folder,
        dictionary,
        statistics,
        _logits(dictionary, model, config.n_logits),
        context_rows(contexts, tokens, _strings(model, tokens, contexts)),
        manifest,
    )


def _logits(dictionary: Dictionary, model: LanguageModel, k: int) -> LogitEffects | None:
    """None where the decoder does not write into the stream that is unembedded."""
    matrix = unembedding(model.module)
    point = find_hook(model.module, dictionary.hook_name_out)
    if matrix is None or not writes_to_stream(model.module, point):
        return None
    high, high_ids, low, low_ids, sharpness = extreme_logits(dictionary.W_dec, matrix, k)

    def texts(ids: Tensor) -> list[list[str]]:
        flat = token_strings(model.tokenizer, ids)
        return [flat[i : i + k] for i in range(0, len(flat), k)]

    return LogitEffects(
        high, texts(high_ids), high_ids, low, texts(low_ids), low_ids, sharpness
    )


def _strings(model: LanguageModel, tokens: Tensor, contexts: list[Context]) -> list[list[str]]:
    stretches = [tokens[c.sequence, c.start : c.start + len(c.activations)] for c in contexts]
    if not stretches:
        return []
    flat = iter(token_strings(model.tokenizer, torch.cat(stretches)))
    return [[next(flat) for _ in range(len(s))] for s in stretches]
