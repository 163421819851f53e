"""`sae train`: rows to a dictionary."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.base.errors import UserError, require
from sae.base.files import check_writable, only_process
from sae.base.progress import say
from sae.base.provenance import digest, plain, versions
from sae.cache.layout import open_cache
from sae.core.scaling import InputScaling, moments
from sae.dictionary import Dictionary
from sae.exchange.saelens import load_dictionary, save_dictionary
from sae.models.load import resolve_device
from sae.stages.live_rows import LiveRows
from sae.stages.train_config import TrainConfig
from sae.training.cached_rows import CachedRows
from sae.training.checkpoint import Checkpoint, Checkpoints, differences, flat
from sae.training.loggers import Logbooks
from sae.training.loop import Diverged, Trainer
from sae.training.own_rows import OwnRows
from sae.training.rows import Rows, RowSource
from sae.training.session import Session, Watch
from sae.training.side_by_side import train_side_by_side

__all__ = ["TrainConfig", "open_source", "run", "train_together"]

_EXTENDED = "extended_at"


def run(config: TrainConfig, rows: Iterable[Any] | None = None) -> Dictionary:
    """Train, or go on from a checkpoint, or reuse a finished dictionary.

    Args:
        rows: tensors (n, d_in) to train on in place of a cache, of any n; pairs of them,
            (n, d_in) and (n, d_out), for a transcoder.
    """
    check_writable(config.dictionary_path)
    (dictionary,) = train_together([config], open_source(config, config.state_path, rows))
    return dictionary


def open_source(
    config: TrainConfig, stream_path: Path, rows: Iterable[Any] | None = None
) -> RowSource:
    """Where the rows come from: the user, a cache, or a model that runs beside.

    Args:
        stream_path: folder for what a model that runs beside needs to go on.
    """
    if rows is not None:
        return OwnRows(
            rows,
            hook_name=config.hook_name,
            output_hook_name=config.output_hook_name,
            batch_size=config.train_batch_size_tokens,
        )
    if config.cache_location is None:
        return LiveRows(
            config.harvest,
            config.hook_name,
            config.output_hook_name,
            batch_size=config.train_batch_size_tokens,
            # Rows beyond the last one that is trained on would be computed in vain.
            mix_rows=min(config.mix_rows, config.n_steps * config.train_batch_size_tokens),
            max_norm_multiple=config.max_norm_multiple,
            seed=config.shuffle_seed,
            state_path=stream_path,
        )
    return CachedRows(
        open_cache(config.cache_location),
        config.hook_name,
        config.output_hook_name,
        batch_size=config.train_batch_size_tokens,
        max_norm_multiple=config.max_norm_multiple,
        seed=config.shuffle_seed,
    )


def train_together(configs: Sequence[TrainConfig], source: RowSource) -> list[Dictionary]:
    """One dictionary for each configuration, all from the batches of one source.

    What is finished is reused. If some diverge, the others are finished first.

    Raises:
        UserError: if another process trains one of them, if one was begun or finished with
            another configuration.
        Diverged: if one diverged.
    """
    if left := unfinished(configs, source):
        _train(left, source)
    return [load_dictionary(config.dictionary_path) for config in configs]


def unfinished(configs: Sequence[TrainConfig], source: RowSource) -> list[TrainConfig]:
    """Those that are still to be trained; of the others it is said that they are reused.

    Raises:
        UserError: if one was finished with another configuration.
    """
    left = [c for c in configs if _finished(c, identity(c, source)) is None]
    for config in configs:
        if config not in left:
            say(f"train: {config.dictionary_path} is there already, reused")
    return left


def identity(config: TrainConfig, source: RowSource) -> dict[str, Any]:
    """What decides the weights: not where they go, nor how progress is reported."""
    begun_with = None if config.init_from is None else load_dictionary(config.init_from).digest
    return {
        **flat({"sae": {"architecture": config.sae.architecture, **plain(config.sae)}}),
        **flat({"optim": {**plain(config.optim), "lr": config.lr}}),
        "training_tokens": config.training_tokens,
        "dead_feature_window": config.dead_feature_window,
        "seed": config.seed,
        "matmul_dtype": config.matmul_dtype,
        "init_from": begun_with,
        **flat(source.identity),
        _EXTENDED: [],
    }


def _train(configs: Sequence[TrainConfig], source: RowSource) -> None:
    with ExitStack() as stack:
        for config in configs:
            stack.enter_context(_only_trainer(config))
        wanted = {config.id: identity(config, source) for config in configs}
        # Asked again: whoever had the lock before may have finished it.
        configs = [c for c in configs if _finished(c, wanted[c.id]) is None]
        if not configs:
            return
        sample = source.sample()
        held_out = source.held_out(configs[0].n_eval_rows)
        sessions = [_session(c, sample, held_out, wanted[c.id]) for c in configs]
        for session in sessions:
            stack.callback(session.close)
        _open_loggers(configs, sessions)
        diverged = train_side_by_side(
            sessions,
            source,
            batch_size=configs[0].train_batch_size_tokens,
            every_seconds=configs[0].checkpoint.every_seconds,
        )
        for config, session in zip(configs, sessions, strict=True):
            if session.name not in diverged:
                metadata = _metadata(config, source, session.identity)
                save_dictionary(session.dictionary(metadata), config.dictionary_path)
    if diverged:
        said = "; ".join(f"{name}: {error}" for name, error in diverged.items())
        raise Diverged(said)


def _only_trainer(config: TrainConfig) -> Any:
    """Be the one process that trains this dictionary."""

    def refusal(owner: str) -> UserError:
        who = f" ({owner})" if owner else ""
        return UserError(
            f"{config.state_path}: another process{who} is training this dictionary; wait for "
            "it, or give this one another name=..."
        )

    return only_process(config.state_path / ".lock", refusal)


def _finished(config: TrainConfig, wanted: dict[str, Any]) -> Dictionary | None:
    """The dictionary, if it is there and need not be extended."""
    path = config.dictionary_path
    if not path.exists():
        return None
    found = load_dictionary(path)
    begun = found.metadata.get("sae_atlas", {}).get("identity", {})
    different = differences(begun, wanted)
    if not different or (config.extend and set(different) == {_EXTENDED}):
        return found
    if _extends(config, begun, different):
        return None
    raise UserError(
        f"{path} holds a dictionary of another configuration or cache: {_said(different)}; "
        "give this one another name=... or remove that one"
    )


def _extends(
    config: TrainConfig, begun: dict[str, Any], different: dict[str, tuple[Any, Any]]
) -> bool:
    """Whether what was begun is the same training, only shorter, and may be extended."""
    shorter = begun.get("training_tokens", 0) < config.training_tokens
    return config.extend and shorter and set(different) <= {"training_tokens", _EXTENDED}


def _said(different: dict[str, tuple[Any, Any]], most: int = 3) -> str:
    """The keys that differ, for a sentence."""
    said = [f"{key} is {there} there, {here} here" for key, (there, here) in different.items()]
    more = [f"{len(said) - most} more keys differ"] if len(said) > most else []
    return ", ".join(said[:most] + more)


def _session(
    config: TrainConfig, sample: Rows, held_out: Rows | None, wanted: dict[str, Any]
) -> Session:
    """A dictionary in training, at its newest checkpoint if there is one."""
    checkpoints = Checkpoints(config.state_path, config.checkpoint)
    found = checkpoints.newest()
    identity = wanted if found is None else _continued(config, found, wanted)
    session = Session(
        config.id,
        _trainer(config, sample),
        config.sae.saved_as,
        config.state_path,
        identity,
        checkpoints=checkpoints,
        watch=Watch(config.log_every_steps, config.eval_interval, held_out),
    )
    if found is not None:
        session.load(found.state)
        say(f"train: {config.id} goes on from step {session.step:,} of {config.n_steps:,}")
    else:
        require(
            not config.dictionary_path.exists(),
            f"extend=true: {config.state_path} holds no checkpoint of {config.dictionary_path} "
            "to go on from; train to training_tokens="
            f"{config.training_tokens} under another name=...",
        )
    return session


def _continued(
    config: TrainConfig, found: Checkpoint, wanted: dict[str, Any]
) -> dict[str, Any]:
    """The identity of a training that goes on from `found`."""
    different = differences(found.identity, wanted)
    before = found.identity.get(_EXTENDED, [])
    if not different or (config.extend and set(different) == {_EXTENDED}):
        return {**wanted, _EXTENDED: before}
    if _extends(config, found.identity, different):
        return {**wanted, _EXTENDED: [*before, found.state["trainer"]["step"]]}
    raise UserError(
        f"{found.path} is a checkpoint of another configuration or cache: {_said(different)}; "
        "give this run another name=... or remove the checkpoint to start anew"
    )


def _trainer(config: TrainConfig, sample: Rows) -> Trainer:
    device = resolve_device(config.device)
    raw = [side.float() for side in sample]
    scalings = [_scaling(side) for side in raw]
    scaled = [scaling(side) for scaling, side in zip(scalings, raw, strict=True)]
    require(
        not config.sae.aligned or scaled[0].shape[1] == scaled[-1].shape[1],
        f"sae.aligned=True needs hooks of one width; {config.hook_name} has "
        f"{scaled[0].shape[1]}, {config.output_hook_name} {scaled[-1].shape[1]}",
    )
    generator = torch.Generator().manual_seed(config.seed)
    sae = config.sae.build(scaled[0], generator, *scaled[1:])
    if config.init_from is not None:
        sae.begin_with(_beginning(config), scalings[0], scalings[-1])
    sae.matmul_dtype = _matmul_dtype(config, device)
    on_device = [InputScaling(s.mean.to(device), s.scale) for s in scalings]
    return Trainer(
        sae.to(device),
        on_device[0],
        config.optim,
        lr=config.lr,
        n_steps=config.n_steps,
        dead_window_rows=int(config.dead_feature_window * config.training_tokens),
        output_scaling=on_device[-1],
    )


def _beginning(config: TrainConfig) -> Dictionary:
    """The dictionary whose weights to begin with."""
    found = load_dictionary(str(config.init_from))
    require(
        found.is_transcoder == (config.output_hook_name is not None),
        f"init_from={config.init_from} goes from {found.hook_name} to {found.hook_name_out}; "
        "give these as hook_name=... and, where they differ, output_hook_name=...",
    )
    return found


def _matmul_dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    narrow = config.matmul_dtype == "bfloat16" or (
        config.matmul_dtype == "auto" and device.type == "cuda"
    )
    return torch.bfloat16 if narrow else None


def _scaling(sample: Tensor) -> InputScaling:
    mean, mean_square_distance = moments(sample)
    require(mean_square_distance > 0, "all rows are the same; nothing to learn")
    return InputScaling.from_moments(mean, mean_square_distance)


def _open_loggers(configs: Sequence[TrainConfig], sessions: Sequence[Session]) -> None:
    logbooks = Logbooks(configs[0].logger)
    for config, session in zip(configs, sessions, strict=True):
        if session.over:
            continue
        session.loggers = logbooks.open(
            config.state_path / "metrics.jsonl",
            folder=config.dictionary_path.parent.parent,
            name=config.id,
            run_id=f"{config.id}-{digest(session.identity)}",
            step=session.step,
            settings=plain(config),
        )


def _metadata(
    config: TrainConfig, source: RowSource, identity: dict[str, Any]
) -> dict[str, Any]:
    """What travels with the weights: SAELens's keys, and ours under `sae_atlas`."""
    about = source.metadata
    return {
        **about,
        "training_architecture": config.sae.architecture,
        "sae_atlas": {
            **about["sae_atlas"],
            "digest": digest(identity),
            "identity": identity,
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
