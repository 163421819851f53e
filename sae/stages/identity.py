"""Which training a dictionary or a checkpoint is of, and whether one may go on with it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sae.base.errors import UserError
from sae.base.files import read_json
from sae.base.provenance import plain
from sae.exchange.saelens import CONFIG_FILE, load_dictionary
from sae.stages.train_config import TrainConfig
from sae.training.checkpoint import Checkpoint, differences, flat
from sae.training.rows import RowSource

Identity = dict[str, Any]
"""What decides the weights, by dotted key."""

_EXTENDED = "extended_at"


class Task(NamedTuple):
    """A dictionary to train."""

    config: TrainConfig
    identity: Identity


def tasks_of(configs: Sequence[TrainConfig], source: RowSource) -> list[Task]:
    """The configurations with their identities; what they share is looked at once."""
    folders = {config.init_from for config in configs if config.init_from is not None}
    beginnings = {folder: load_dictionary(folder).digest for folder in folders}
    rows = flat(source.identity)
    return [
        Task(config, _identity(config, rows, beginnings.get(config.init_from or "")))
        for config in configs
    ]


def _identity(config: TrainConfig, rows: Identity, begun_with: str | None) -> Identity:
    """What decides the weights: not where they go, nor how progress is reported."""
    return {
        **flat({"sae": {"architecture": config.sae.architecture, **plain(config.sae)}}),
        **flat({"optim": {**plain(config.optim), "lr": config.lr}}),
        "training_tokens": config.training_tokens,
        "dead_feature_window": config.dead_feature_window,
        "seed": config.seed,
        "matmul_dtype": config.matmul_dtype,
        "init_from": begun_with,
        **rows,
        _EXTENDED: [],
    }


def finished(task: Task) -> bool:
    """Whether the dictionary is there and need not be extended.

    Raises:
        UserError: if it is of another training.
    """
    config, wanted = task
    path = config.dictionary_path
    if not path.exists():
        return False
    metadata = read_json(path / CONFIG_FILE).get("metadata", {})
    begun = metadata.get("sae_atlas", {}).get("identity", {})
    different = differences(begun, wanted)
    if not different or (config.extend and set(different) == {_EXTENDED}):
        return True
    if _extends(config, begun, different):
        return False
    _explain_extension(config, begun, different)
    raise UserError(
        f"{path} holds a dictionary of another configuration or cache: {_said(different)}; "
        "give this one another name=... or remove that one"
    )


def _extends(
    config: TrainConfig, begun: Identity, different: dict[str, tuple[Any, Any]]
) -> bool:
    """Whether what was begun is the same training, only shorter, and may be extended."""
    shorter = begun.get("training_tokens", 0) < config.training_tokens
    return config.extend and shorter and set(different) <= {"training_tokens", _EXTENDED}


def _explain_extension(
    config: TrainConfig, begun: Identity, different: dict[str, tuple[Any, Any]]
) -> None:
    """Say so if all that differs is how long a training is."""
    if not set(different) <= {"training_tokens", _EXTENDED}:
        return
    path, tokens = config.dictionary_path, begun["training_tokens"]
    if tokens > config.training_tokens:
        raise UserError(
            f"{path} has training_tokens={tokens} already, more than {config.training_tokens}; "
            "give this one another name=..."
        )
    raise UserError(
        f"{path} was trained with training_tokens={tokens}, in {len(begun[_EXTENDED]) + 1} "
        "parts; add extend=true to go on with it, or give this one another name=..."
    )


def _said(different: dict[str, tuple[Any, Any]], most: int = 3) -> str:
    """The keys that differ, for a sentence."""
    said = [f"{key} is {there} there, {here} here" for key, (there, here) in different.items()]
    more = [f"{len(said) - most} more keys differ"] if len(said) > most else []
    return ", ".join(said[:most] + more)


def continued(task: Task, found: Checkpoint) -> Identity:
    """The identity of a training that goes on from `found`.

    Raises:
        UserError: if it cannot, which keys differ.
    """
    config, wanted = task
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
