"""`sae train`: rows of a cache to a dictionary."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.architectures import ArchitectureConfig, StandardConfig
from sae.base.errors import UserError, require
from sae.base.files import check_writable, read_json, write_json
from sae.base.progress import progress, say
from sae.base.provenance import digest, plain, versions
from sae.cache.layout import ActivationCache, cache_location, open_cache
from sae.cache.reader import RowSelection, rows_in_order, select_rows, shuffled_batches
from sae.core.scaling import InputScaling, moments
from sae.dictionary import Dictionary
from sae.exchange.saelens import load_dictionary, save_dictionary
from sae.models.load import resolve_device
from sae.training.checkpoint import load_checkpoint, save_checkpoint
from sae.training.loggers import Logger, LoggerConfig, open_loggers
from sae.training.loop import Batch, StepReport, Trainer
from sae.training.optim import OptimConfig

_SAMPLE_ROWS = 16_384
_SEED = 42


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Fit one autoencoder to the rows of a cache."""

    run: str = "runs/default"
    """Folder of the pipeline; the dictionary is written to `{run}/dictionaries/{name}`."""
    cache: str | None = None
    """Cache to read, a folder or an address; by default `{run}/cache.zarr`."""
    hook_name: str | None = None
    """Which hook of the cache; may be left out if there is one."""
    output_hook_name: str | None = None
    """Hook of the cache to predict from the other one, which makes a transcoder."""
    name: str | None = None
    """Name of the dictionary; by default made of architecture, width, penalty, lr and seed."""
    sae: ArchitectureConfig = field(default_factory=StandardConfig)
    """Group: the architecture."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Group: the optimiser."""
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    """Group: where figures go."""
    training_tokens: int = 2_000_000
    """Rows to train on in all; more than the cache has means several passes."""
    train_batch_size_tokens: int = 1024
    """Rows a step."""
    max_norm_multiple: float | None = 10.0
    """Rows above this multiple of the median norm are left out; null keeps all."""
    dead_feature_window: float = 0.1
    """A latent is dead when silent over the last rows, this share of the run."""
    seed: int = _SEED
    """Of the initial weights and the order of rows."""
    device: str = "auto"
    """`cpu`, `cuda`, ...; `auto` takes a GPU when there is one."""
    matmul_dtype: str = "auto"
    """Of the encoder's product: `float32`, `bfloat16`, or `auto`, the second on CUDA alone. It
    finds the active latents; their values and all weights are float32 in any case."""
    log_every_steps: int = 10
    """Steps between two lines of figures."""
    checkpoint_every_seconds: float = 20.0
    """Time between two checkpoints."""

    def __post_init__(self) -> None:
        require(
            not self.name or Path(self.name).name == self.name != "..",
            f"name={self.name} is no name of one folder; leave out the slashes",
        )
        require(
            self.train_batch_size_tokens >= 1,
            f"train_batch_size_tokens={self.train_batch_size_tokens}; give 1 or more",
        )
        require(
            self.training_tokens >= self.train_batch_size_tokens,
            f"training_tokens={self.training_tokens} is less than one batch of "
            f"train_batch_size_tokens={self.train_batch_size_tokens}",
        )
        require(
            0 < self.dead_feature_window <= 1,
            f"dead_feature_window={self.dead_feature_window}; give a share of the run, "
            "above 0 and up to 1",
        )
        require(
            self.max_norm_multiple is None or self.max_norm_multiple > 0,
            f"max_norm_multiple={self.max_norm_multiple}; give more than 0, or null",
        )
        require(
            self.log_every_steps >= 1, f"log_every_steps={self.log_every_steps}; give 1 or more"
        )
        require(
            self.matmul_dtype in ("auto", "float32", "bfloat16"),
            f"matmul_dtype={self.matmul_dtype} is unknown; choose auto, float32 or bfloat16",
        )
        require(
            self.output_hook_name is not None or not self.sae.skip_connection,
            "sae.skip_connection=True is a transcoder's and needs output_hook_name=..., the "
            "hook to predict",
        )

    @property
    def id(self) -> str:
        """The dictionary's name: as given, or what people sweep."""
        if self.name:
            return self.name
        to = f"-to-{self.output_hook_name}" if self.output_hook_name else ""
        lr = "" if self.optim.lr is None else f"-lr-{self.optim.lr:g}"
        seed = "" if self.seed == _SEED else f"-seed-{self.seed}"
        return f"{self.sae.short_name}{to}{lr}{seed}"

    @property
    def cache_location(self) -> str:
        """The cache that is read."""
        return cache_location(self.run, self.cache)

    @property
    def dictionary_path(self) -> Path:
        """Where the dictionary goes."""
        return Path(self.run) / "dictionaries" / self.id

    @property
    def state_path(self) -> Path:
        """Where the training's own files go: checkpoint, figures, time spent."""
        return Path(self.run) / "training" / self.id

    @property
    def lr(self) -> float:
        """Peak learning rate: as given, or the architecture's."""
        return self.sae.default_lr if self.optim.lr is None else self.optim.lr

    @property
    def n_steps(self) -> int:
        """Steps of the run."""
        return self.training_tokens // self.train_batch_size_tokens


def run(config: TrainConfig) -> Dictionary:
    """Train, or go on from a checkpoint, or reuse a finished dictionary."""
    check_writable(config.dictionary_path)
    cache = open_cache(config.cache_location)
    hook_name, output_hook_name = _hooks(config, cache)
    # What decides the weights: not where they go, nor how progress is reported.
    content = plain(
        replace(
            config,
            run="",
            cache=None,
            name=None,
            device="",
            logger=LoggerConfig(),
            log_every_steps=1,
            checkpoint_every_seconds=0.0,
        )
    )
    wanted = digest(
        [content, config.sae.architecture, cache.digest, hook_name, output_hook_name]
    )
    if (finished := _finished(config, wanted)) is not None:
        say(f"train: {config.dictionary_path} is there already, reused")
        return finished
    rows = select_rows(
        cache, hook_name, held_out=False, max_norm_multiple=config.max_norm_multiple
    )
    trainer = _trainer(config, rows, output_hook_name)
    state = load_checkpoint(config.state_path / "checkpoint.pt", wanted)
    if state is not None:
        trainer.load_state_dict(state)
        say(f"train: {config.id} goes on from step {trainer.step:,} of {config.n_steps:,}")
    batches = shuffled_batches(
        rows,
        config.train_batch_size_tokens,
        seed=config.seed,
        skip=trainer.step,
        output_hook_name=output_hook_name,
    )
    _train(config, trainer, batches, wanted)
    dictionary = Dictionary(
        **trainer.sae.weights(trainer.scaling, trainer.output_scaling),
        architecture=config.sae.saved_as,
        metadata=_metadata(config, cache, (hook_name, output_hook_name), wanted),
    )
    save_dictionary(dictionary, config.dictionary_path)
    return load_dictionary(config.dictionary_path)


def _finished(config: TrainConfig, wanted: str) -> Dictionary | None:
    if not config.dictionary_path.exists():
        return None
    found = load_dictionary(config.dictionary_path)
    if found.metadata.get("sae_atlas", {}).get("digest") != wanted:
        raise UserError(
            f"{config.dictionary_path} holds a dictionary of another configuration or cache; "
            "give this one another name=... or remove that one"
        )
    return found


def _hooks(config: TrainConfig, cache: ActivationCache) -> tuple[str, str | None]:
    """The hook to read, and for a transcoder the one to predict."""
    if config.output_hook_name is None:
        return cache.hook(config.hook_name), None
    require(
        config.hook_name is not None,
        f"output_hook_name={config.output_hook_name} needs hook_name=..., the hook to read",
    )
    hook_name, output_hook_name = (
        cache.hook(name) for name in (config.hook_name, config.output_hook_name)
    )
    require(
        hook_name != output_hook_name,
        f"output_hook_name={output_hook_name} is hook_name itself; leave it out to train an "
        "autoencoder",
    )
    same_width = cache.d_in(hook_name) == cache.d_in(output_hook_name)
    require(
        same_width or not config.sae.aligned,
        f"sae.aligned=True needs hooks of one width; {hook_name} has "
        f"{cache.d_in(hook_name)}, {output_hook_name} {cache.d_in(output_hook_name)}",
    )
    return hook_name, output_hook_name


def _trainer(config: TrainConfig, rows: RowSelection, output_hook_name: str | None) -> Trainer:
    device = resolve_device(config.device)
    found = list(rows_in_order(rows, limit=_SAMPLE_ROWS, output_hook_name=output_hook_name))
    pairs = [part if isinstance(part, tuple) else (part,) for part in found]
    samples = [torch.cat(parts).float() for parts in zip(*pairs, strict=True)]
    scalings = [_scaling(sample) for sample in samples]
    scaled = [scaling(sample) for scaling, sample in zip(scalings, samples, strict=True)]
    generator = torch.Generator().manual_seed(config.seed)
    sae = config.sae.build(scaled[0], generator, *scaled[1:]).to(device)
    narrow = config.matmul_dtype == "bfloat16" or (
        config.matmul_dtype == "auto" and device.type == "cuda"
    )
    sae.matmul_dtype = torch.bfloat16 if narrow else None
    on_device = [InputScaling(s.mean.to(device), s.scale) for s in scalings]
    return Trainer(sae, on_device[0], config.optim, lr=config.lr, output_scaling=on_device[-1])


def _scaling(sample: Tensor) -> InputScaling:
    mean, mean_square_distance = moments(sample)
    require(mean_square_distance > 0, "all rows of the cache are the same; nothing to learn")
    return InputScaling.from_moments(mean, mean_square_distance)


def _train(
    config: TrainConfig, trainer: Trainer, batches: Iterator[Batch], wanted: str
) -> None:
    timing_path = config.state_path / "timing.json"
    spent = read_json(timing_path)["seconds"] if trainer.step and timing_path.exists() else 0.0
    began = saved = time.perf_counter()
    loggers = open_loggers(
        config.logger,
        config.state_path / "metrics.jsonl",
        name=config.id,
        run_id=f"{config.id}-{wanted}",
        step=trainer.step,
        settings=plain(config),
    )
    size = config.train_batch_size_tokens
    window = int(config.dead_feature_window * config.training_tokens)
    try:
        with progress(config.n_steps * size, config.id, "tok", trainer.step * size) as bar:
            for report in trainer.fit(batches, config.n_steps, window):
                bar.update(size)
                last = report.step == config.n_steps
                if report.step % config.log_every_steps == 0 or last:
                    _log(report, loggers, bar)
                now = time.perf_counter()
                if last or now - saved > config.checkpoint_every_seconds:
                    saved = now
                    trainer.check_finite()
                    for logger in loggers:
                        logger.flush()
                    write_json(timing_path, {"seconds": spent + now - began})
                    save_checkpoint(
                        config.state_path / "checkpoint.pt", wanted, trainer.state_dict()
                    )
    finally:
        for logger in loggers:
            logger.close()


def _log(report: StepReport, loggers: list[Logger], bar: Any) -> None:
    metrics = report.metrics()
    for logger in loggers:
        logger.log(report.step, metrics)
    bar.set_postfix(
        loss=f"{metrics['losses/overall_loss']:.1f}",
        l0=f"{metrics['metrics/l0']:.1f}",
        ev=f"{metrics['metrics/explained_variance']:.3f}",
        dead=f"{metrics['sparsity/dead_features']:.0f}",
        refresh=False,
    )


def _metadata(
    config: TrainConfig,
    cache: ActivationCache,
    hook_names: tuple[str, str | None],
    wanted: str,
) -> dict[str, Any]:
    """What travels with the weights: SAELens's keys, and ours under `sae_atlas`."""
    attributes = cache.attributes
    hook_name, output_hook_name = hook_names
    modules = {name: attributes["hooks"][name]["module"] for name in hook_names if name}
    output = (
        {"hook_name_out": output_hook_name, "hf_hook_name_out": modules[output_hook_name]}
        if output_hook_name
        else {}
    )
    return {
        "model_name": attributes["model"]["hub_id"],
        "model_class_name": "AutoModelForCausalLM"
        if attributes["model"].get("causal", True)
        else "AutoModel",
        "hook_name": hook_name,
        "hf_hook_name": modules[hook_name],
        **output,
        "context_size": cache.context_size,
        "prepend_bos": attributes["bos_token_id"] is not None,
        "exclude_special_tokens": True,
        "dataset_path": attributes["data"]["name"],
        "training_architecture": config.sae.architecture,
        "sae_atlas": {
            "digest": wanted,
            "cache_digest": cache.digest,
            "model": attributes["model"],
            "data": attributes["data"],
            "bos_token_id": attributes["bos_token_id"],
            "architecture": config.sae.architecture,
            "sae": plain(config.sae),
            "optim": {**plain(config.optim), "lr": config.lr},
            "training_tokens": config.n_steps * config.train_batch_size_tokens,
            "train_batch_size_tokens": config.train_batch_size_tokens,
            "max_norm_multiple": config.max_norm_multiple,
            "seed": config.seed,
            "versions": versions(),
        },
    }
