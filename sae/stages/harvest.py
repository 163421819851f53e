"""`sae harvest`: text through the model, activations of some hooks into a cache."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from sae.base.errors import require
from sae.base.files import check_free_space, check_writable, read_json, write_json
from sae.base.progress import progress, say
from sae.base.provenance import code_version, digest, plain
from sae.cache.layout import STORED_DTYPES, ActivationCache, open_cache
from sae.cache.writer import CacheWriter, HookShape, bytes_needed, create_cache, resume_cache
from sae.models.hooks import HookPoint, find_hook, read_activations
from sae.models.load import LanguageModel, ModelConfig, load_model, load_skeleton
from sae.text.packing import PackedText, pack
from sae.text.source import DataConfig, check_source, documents


@dataclass(frozen=True, kw_only=True, slots=True)
class HarvestConfig:
    """Stream activations of a model over text into a zarr cache."""

    run: str = "runs/default"
    """Folder of the pipeline; the cache is `{run}/cache.zarr`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Group: the language model."""
    data: DataConfig = field(default_factory=DataConfig)
    """Group: the text."""
    hook_names: list[str] = field(default_factory=lambda: ["blocks.9.hook_resid_post"])
    """Where to read: TransformerLens names or module paths; several cost one forward."""
    n_tokens: int = 480_000
    """Tokens to harvest, the held-out ones included."""
    context_size: int = 128
    """Tokens a row."""
    dtype: str = "float16"
    """Stored precision: float16, bfloat16 or float32."""
    batch_size: int = 16
    """Rows a forward pass."""

    def __post_init__(self) -> None:
        require(bool(self.hook_names), "hook_names is empty; name at least one hook")
        twice = {name for name in self.hook_names if self.hook_names.count(name) > 1}
        require(not twice, f"hook_names holds {', '.join(sorted(twice))} twice; name each once")
        require(self.context_size >= 2, f"context_size={self.context_size}; give 2 or more")
        require(
            self.n_tokens >= 2 * self.context_size,
            f"n_tokens={self.n_tokens} is less than two rows of context_size="
            f"{self.context_size}, one for training and one held out",
        )
        require(self.batch_size >= 1, f"batch_size={self.batch_size}; give 1 or more")
        require(
            self.dtype in STORED_DTYPES,
            f"dtype={self.dtype} is unknown; choose one of {', '.join(STORED_DTYPES)}",
        )

    @property
    def cache_path(self) -> Path:
        """Where the cache goes."""
        return Path(self.run) / "cache.zarr"

    @property
    def timing_path(self) -> Path:
        """Seconds spent; kept out of the cache, whose bytes depend on its content alone."""
        return Path(self.run) / "harvest.json"


def run(config: HarvestConfig) -> ActivationCache:
    """Harvest, or complete a harvest that was interrupted, or reuse a finished one."""
    check_writable(config.cache_path.parent)
    # What decides the content; the batch size and the device do not.
    content = plain(
        replace(config, run="", batch_size=1, model=replace(config.model, device=""))
    )
    wanted = digest(content)
    writer = resume_cache(config.cache_path, wanted)
    if writer is not None and writer.intact():
        say(f"harvest: {config.cache_path} is there already, reused")
        return open_cache(config.cache_path)
    if writer is None:
        check_source(config.data)
    skeleton = load_skeleton(config.model)
    for name in config.hook_names:
        find_hook(skeleton, name)
    longest = getattr(skeleton.config, "max_position_embeddings", None)
    require(
        longest is None or config.context_size <= longest,
        f"context_size={config.context_size} is longer than the model's {longest} positions",
    )
    model = load_model(config.model)
    points = [find_hook(model.module, name) for name in config.hook_names]
    if writer is None:
        writer = _create(config, model, points, wanted)
    else:
        _continue(config, writer, model)
    _fill(config, writer, model, points)
    writer.finish()
    return open_cache(config.cache_path)


def _create(
    config: HarvestConfig, model: LanguageModel, points: list[HookPoint], wanted: str
) -> CacheWriter:
    hooks = _shapes(model, points)
    needed = bytes_needed(config.n_tokens, hooks, config.dtype)
    say(
        f"harvest: {config.n_tokens:,} tokens of {config.data.name} through "
        f"{config.model.name} at {', '.join(config.hook_names)}; {needed / 1e9:.2f} GB on disk"
    )
    check_free_space(config.cache_path, needed)
    text = _packed(config, model)
    if text.tokens.size < 0.95 * config.n_tokens:
        say(f"harvest: the text ended after {text.tokens.size:,} tokens")
    attributes: dict[str, Any] = {
        "digest": wanted,
        "model": {
            "name": config.model.name,
            "hub_id": model.hub_id,
            "revision": config.model.revision,
            "dtype": config.model.dtype,
            "bos_token": config.model.bos_token,
            "weight_digest": model.digest,
        },
        "tokenizer_digest": digest(model.tokenizer.get_vocab()),
        "data": plain(config.data) | {"documents": len(text.document_digests)},
        "data_digest": digest(text.document_digests.tolist()),
        "bos_token_id": model.bos_token_id,
        "special_token_ids": model.special_token_ids,
        "code_version": code_version(),
    }
    return create_cache(
        config.cache_path, text, hooks, dtype=config.dtype, attributes=attributes
    )


def _packed(config: HarvestConfig, model: LanguageModel) -> PackedText:
    return pack(
        documents(config.data),
        model.tokenizer,
        bos_token_id=model.bos_token_id,
        context_size=config.context_size,
        n_tokens=config.n_tokens,
        held_out_fraction=config.data.held_out_fraction,
    )


def _continue(config: HarvestConfig, writer: CacheWriter, model: LanguageModel) -> None:
    """Refuse to mix activations of two models in one cache; put damaged text back."""
    require(
        writer.weight_digest == model.digest,
        f"{config.cache_path} was begun with other weights of {config.model.name}; choose "
        "another run=... or remove it",
    )
    if not writer.text_intact():
        writer.write_text(_packed(config, model))


def _shapes(model: LanguageModel, points: list[HookPoint]) -> list[HookShape]:
    """Widths at the hooks, from a forward pass over two tokens."""
    probe = torch.zeros((1, 2), dtype=torch.int64, device=model.device)
    seen = read_activations(model.module, points, probe)
    return [HookShape(p.hook_name, p.module, seen[p.hook_name].shape[-1]) for p in points]


def _fill(
    config: HarvestConfig, writer: CacheWriter, model: LanguageModel, points: list[HookPoint]
) -> None:
    """Compute every chunk that is not there, noting the time that it took."""
    tokens = torch.from_numpy(writer.tokens).long()
    missing = writer.missing()
    todo = sum(tokens[c].numel() for c in missing)
    if todo < tokens.numel():
        say(f"harvest: {tokens.numel() - todo:,} tokens are there already, going on")
    spent = read_json(config.timing_path) if config.timing_path.exists() else {}
    seconds, counted = spent.get("seconds", 0.0), spent.get("tokens", 0)
    with progress(tokens.numel(), "harvest", "tok", tokens.numel() - todo) as bar:
        for chunk in missing:
            began = time.perf_counter()
            seen = [
                read_activations(model.module, points, batch.to(model.device))
                for batch in torch.split(tokens[chunk], config.batch_size)
            ]
            names = [p.hook_name for p in points]
            writer.write(chunk, {n: torch.cat([s[n] for s in seen]) for n in names})
            seconds += time.perf_counter() - began
            counted += tokens[chunk].numel()
            timing = {
                "seconds": seconds,
                "tokens": counted,
                "tokens_per_second": counted / seconds,
            }
            write_json(config.timing_path, timing)
            bar.update(tokens[chunk].numel())
