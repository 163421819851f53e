"""`sae harvest`: text through the model, activations of some hooks into a cache."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae.base.errors import require
from sae.base.files import check_free_space, check_writable, free_space
from sae.base.processes import Processes, joined_processes
from sae.base.progress import say
from sae.base.provenance import code_version, digest, plain
from sae.cache.create import COMPRESSIONS, create_cache, find_cache
from sae.cache.layout import RUN_CACHE, ActivationCache, cache_location, open_cache
from sae.cache.store import local_folder, only_writer, sweep
from sae.cache.stored import STORED_DTYPES
from sae.cache.writer import CacheWriter, bytes_needed
from sae.models.hooks import find_site, measured, read_activations
from sae.models.load import LanguageModel, ModelConfig, load_model, load_skeleton
from sae.models.site import Site
from sae.stages.fill import fill
from sae.stages.text_stream import TextStream
from sae.text.packing import Marks, TextPlan
from sae.text.source import DataConfig, check_source

# 8 rows of 128 are the fastest on two cores (docs/log.md). A GPU takes all rows of a chunk.
_TOKENS_A_BATCH = {"cpu": 1024}


@dataclass(frozen=True, kw_only=True, slots=True)
class HarvestConfig:
    """Stream activations of a model over text into a zarr cache."""

    run: str = "runs/default"
    """Folder of the pipeline; the cache is `{run}/cache.zarr`."""
    cache: str = RUN_CACHE
    """Where the cache goes: a folder, or an object store such as `s3://bucket/x.zarr`."""
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
    one_document_a_row: bool = False
    """Begin a row with every document, and pad, instead of packing documents end to end."""
    dtype: str = "float16"
    """Stored precision: float16, bfloat16, float32, or int8 with a scale for each row."""
    compression: str = "none"
    """`zstd` compresses chunks without loss; they are read more slowly then."""
    batch_size: int | None = None
    """Rows a forward pass; by default about a thousand tokens on a CPU, whose caches they fit,
    and a whole chunk on a GPU."""
    text_workers: int | None = None
    """Processes that tokenise ahead; by default a quarter of the cores, at most 8."""
    verify: bool = True
    """Read back what is there already, and compute damaged chunks anew."""

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
        require(
            self.batch_size is None or self.batch_size >= 1,
            f"batch_size={self.batch_size}; give 1 or more",
        )
        require(
            self.dtype in STORED_DTYPES,
            f"dtype={self.dtype} is unknown; choose one of {', '.join(STORED_DTYPES)}",
        )
        require(
            self.compression in COMPRESSIONS,
            f"compression={self.compression} is unknown; choose one of "
            f"{', '.join(COMPRESSIONS)}",
        )
        require(
            self.text_workers is None or self.text_workers >= 0,
            f"text_workers={self.text_workers} is negative; give 0 to tokenise in the process",
        )

    @property
    def cache_location(self) -> str:
        """Where the cache goes."""
        return cache_location(self.run, self.cache)

    @property
    def digest(self) -> str:
        """Identifies the content: where it goes, and how fast it is made, are no part of it."""
        content = replace(
            self,
            run="",
            batch_size=None,
            text_workers=None,
            verify=True,
            model=replace(self.model, device=""),
        )
        return digest(plain(content) | {"cache": None})

    def rows_a_batch(self, device: torch.device) -> int:
        """Rows a forward pass, as asked for or as suits the device."""
        most = _TOKENS_A_BATCH.get(device.type, 1 << 20)
        return self.batch_size or max(1, most // self.context_size)

    @property
    def timing_path(self) -> Path:
        """Seconds spent; kept out of the cache, whose bytes depend on its content alone."""
        return Path(self.run) / "harvest.json"


def run(config: HarvestConfig) -> ActivationCache:
    """Harvest, or complete a harvest that was interrupted, or reuse a finished one.

    Started by `torchrun`, several processes fill one cache, taking turns with its chunks.
    """
    with joined_processes() as processes:
        if processes.rank == 0:
            _lead(config, processes)
        else:
            _follow(config, processes)
    return open_cache(config.cache_location)


def _lead(config: HarvestConfig, processes: Processes) -> None:
    """Lay out the cache, stream the text in, fill a share of the chunks, and finish."""
    location = config.cache_location
    if (folder := local_folder(location)) is not None:
        check_writable(folder.parent)
        _check_apart(folder, config.data)
    writer = find_cache(location, config.digest)
    if writer is not None and writer.intact(verify=config.verify):
        say(f"harvest: {location} is there already, reused")
        processes.share(False)
        return
    if writer is None:
        check_source(config.data)
    check_hooks(config)
    with only_writer(location):
        sweep(location)
        # Asked again: whoever had the lock before may have gone on with it.
        writer = find_cache(location, config.digest)
        model = load_model(_on_own_device(config.model, processes))
        writer = _create(config, model) if writer is None else writer
        _check_same_model(config, writer, model)
        with _text(config, writer, model) as text:
            processes.share(True)
            _fill(config, writer, model, text, processes)
        processes.barrier()
        writer.finish()
    _say_what_rows(writer)
    processes.barrier()


def _check_apart(cache: Path, data: DataConfig) -> None:
    """Refuse a cache inside the folder of its text: its own files would be read as text."""
    text = Path(data.name).expanduser()
    require(
        not (text.is_dir() and text.resolve() in cache.resolve().parents),
        f"{cache} would be inside data.name={data.name}, and be read as text; choose another "
        "run=... or name a folder of text alone",
    )


def _follow(config: HarvestConfig, processes: Processes) -> None:
    """Fill a share of the chunks of the cache that the first process has laid out."""
    if not processes.share(None):
        return
    writer = CacheWriter(config.cache_location)
    model = load_model(_on_own_device(config.model, processes))
    _check_same_model(config, writer, model)
    _fill(config, writer, model, None, processes)
    processes.barrier()
    processes.barrier()


def _on_own_device(config: ModelConfig, processes: Processes) -> ModelConfig:
    """A GPU for each process of a machine, where there are several."""
    several = processes.size > 1 and config.device in ("auto", "cuda")
    if several and torch.cuda.is_available():
        device = processes.local_rank % torch.cuda.device_count()
        return replace(config, device=f"cuda:{device}")
    return config


def check_hooks(config: HarvestConfig) -> None:
    """Refuse unknown places and too long rows before weights are loaded."""
    skeleton = load_skeleton(config.model)
    names = [find_site(skeleton, name).hook_name for name in config.hook_names]
    twice = {name for name in names if names.count(name) > 1}
    require(not twice, f"hook_names names {', '.join(sorted(twice))} twice; name each once")
    longest = getattr(skeleton.config, "max_position_embeddings", None)
    require(
        longest is None or config.context_size <= longest,
        f"context_size={config.context_size} is longer than the model's {longest} positions",
    )


def _check_same_model(config: HarvestConfig, writer: CacheWriter, model: LanguageModel) -> None:
    """Refuse to mix activations of two models in one cache."""
    for what, begun, now in (
        ("weights", writer.model.weight_digest, model.digest),
        ("tokenizer", writer.attributes["tokenizer_digest"], tokenizer_digest(model)),
    ):
        require(
            begun == now,
            f"{config.cache_location} was begun with other {what} of {config.model.name} "
            f"({begun}, now {now}); choose another run=... or remove it",
        )


def tokenizer_digest(model: LanguageModel) -> str:
    """Identifies the tokenizer by its vocabulary."""
    return digest(model.tokenizer.get_vocab())


def marks_of(model: LanguageModel) -> Marks:
    """The tokens that this model has around documents."""
    return Marks(model.bos_token_id, model.end_token_id, model.pad_token_id)


def _create(config: HarvestConfig, model: LanguageModel) -> CacheWriter:
    sites = measured(model.module, _sites(config, model))
    plan = TextPlan.of(config.n_tokens, config.context_size, config.data.held_out_fraction)
    needed = bytes_needed(
        plan.n_sequences * plan.context_size, [site.width for site in sites], config.dtype
    )
    folder = local_folder(config.cache_location)
    free = "" if folder is None else f", {free_space(folder) / 1e9:.0f} GB are free"
    say(
        f"harvest: {config.n_tokens:,} tokens of {config.data.name} through "
        f"{config.model.name} at {', '.join(site.hook_name for site in sites)}; "
        f"{needed / 1e9:.2f} GB on disk{free}"
    )
    if folder is not None:
        check_free_space(folder, needed)
    return create_cache(
        config.cache_location,
        sites,
        plan,
        dtype=config.dtype,
        compression=config.compression,
        attributes={
            "digest": config.digest,
            "model": model.record(config.model).to_json(),
            "tokenizer_digest": tokenizer_digest(model),
            "data": plain(config.data),
            "one_document_a_row": config.one_document_a_row,
            "bos_token_id": model.bos_token_id,
            "special_token_ids": model.special_token_ids,
            "code_version": code_version(),
        },
    )


@contextmanager
def _text(
    config: HarvestConfig, writer: CacheWriter, model: LanguageModel
) -> Iterator[TextStream | None]:
    """The text on its way into the cache; None if it is there."""
    complete = writer.text_complete
    if complete and (not config.verify or writer.text_intact()):
        yield None
        return
    stream = TextStream(
        config.cache_location,
        config.data,
        model.tokenizer,
        marks_of(model),
        n_workers=config.text_workers,
        one_document_a_row=config.one_document_a_row,
    )
    with stream:
        if complete:
            # Damaged: no chunk is filled from it before it is whole again.
            stream.finish()
        yield stream


def _fill(
    config: HarvestConfig,
    writer: CacheWriter,
    model: LanguageModel,
    text: TextStream | None,
    processes: Processes,
) -> None:
    compute = partial(
        activations,
        model=model,
        sites=_sites(config, model),
        batch_size=config.rows_a_batch(model.device),
    )
    fill(writer, compute, text, processes, verify=config.verify, timing_path=config.timing_path)


def _sites(config: HarvestConfig, model: LanguageModel) -> list[Site]:
    return [find_site(model.module, name) for name in config.hook_names]


def activations(
    tokens: NDArray[np.int32],
    text: NDArray[np.bool_],
    *,
    model: LanguageModel,
    sites: Sequence[Site],
    batch_size: int,
) -> list[dict[str, Tensor]]:
    """Activations of some rows at every hook, batch by batch (sequence, position, d_in)."""
    seen = []
    for at in range(0, len(tokens), batch_size):
        ids = torch.from_numpy(tokens[at : at + batch_size]).long().to(model.device)
        there = torch.from_numpy(text[at : at + batch_size])
        # Padding is masked. Without any the model makes the mask that it was trained with.
        mask = None if bool(there.all()) else there.long().to(model.device)
        seen.append(read_activations(model.module, sites, ids, mask))
    return seen


def _say_what_rows(writer: CacheWriter) -> None:
    """Which of the training rows later stages read, and which they leave out."""
    for hook, about in writer.attributes["hooks"].items():
        rows = about["training_rows"]
        special, sinks = rows["all"] - rows["text"], rows["sinks"]
        say(
            f"harvest: {hook}: of {rows['all']:,} training rows {special / rows['all']:.2%} "
            f"are special tokens or padding, {sinks / rows['all']:.2%} attention sinks; both "
            "are left out of training"
        )
