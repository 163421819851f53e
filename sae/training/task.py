"""One dictionary to train: which training it is, and whether what is there is of the same."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sae.base import UserError, plain, remove_unfinished
from sae.dictionary import load_dictionary
from sae.dictionary.files import read_record
from sae.dictionary.record import upgraded_identity
from sae.rows.source import RowSource
from sae.run import held
from sae.training.checkpoint import Checkpoint, differences, flat
from sae.training.config import TrainConfig

Identity = Mapping[str, object]
"""What decides the weights, by dotted key."""

_EXTENDED = "extended_at"


@dataclass(frozen=True, slots=True)
class Task:
    """A dictionary that is to be trained: an artefact of a run."""

    config: TrainConfig
    identity: Identity

    @property
    def place(self) -> str:
        """The dictionary's folder."""
        return str(self.config.dictionary_path)

    def is_current(self) -> bool:
        """Return whether the dictionary is there and need not be extended.

        Raises:
            UserError: if it is of another training.
        """
        config, path = self.config, self.config.dictionary_path
        if not path.exists():
            return False
        training = read_record(path).training
        begun: Identity = {} if training is None else training.identity
        different = differences(begun, self.identity)
        if not different or (config.extend and set(different) == {_EXTENDED}):
            return True
        if _extends(config, begun, different):
            return False
        _explain_extension(config, begun, different)
        raise UserError(
            f"{path} holds a dictionary of another configuration or cache: "
            f"{_said(different)}; give this one another name=... or remove that one"
        )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the only process that trains it, with what killed ones left removed."""
        path, lock = self.config.dictionary_path, self.config.state_path / ".lock"
        with held(path, lock):
            remove_unfinished(self.config.state_path)
            yield


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


def _extends(
    config: TrainConfig, begun: Identity, different: dict[str, tuple[object, object]]
) -> bool:
    """Whether what was begun is the same training, only shorter, and may be extended."""
    shorter = _tokens(begun) < config.training_tokens
    return config.extend and shorter and set(different) <= {"training_tokens", _EXTENDED}


def _tokens(begun: Identity) -> int:
    tokens = begun.get("training_tokens")
    return tokens if isinstance(tokens, int) else 0


def _parts(begun: Identity) -> list[object]:
    """The steps at which a training was extended."""
    found = begun.get(_EXTENDED)
    return found if isinstance(found, list) else []


def _explain_extension(
    config: TrainConfig, begun: Identity, different: dict[str, tuple[object, object]]
) -> None:
    """Say so if all that differs is how long a training is."""
    if not set(different) <= {"training_tokens", _EXTENDED}:
        return
    path, tokens = config.dictionary_path, _tokens(begun)
    if tokens > config.training_tokens:
        raise UserError(
            f"{path} has training_tokens={tokens} already, more than {config.training_tokens}; "
            "give this one another name=..."
        )
    raise UserError(
        f"{path} was trained with training_tokens={tokens}, in {len(_parts(begun)) + 1} "
        "parts; add extend=true to go on with it, or give this one another name=..."
    )


def _said(different: dict[str, tuple[object, object]], most: int = 3) -> str:
    """The keys that differ, for a sentence."""
    said = [f"{key} is {there} there, {here} here" for key, (there, here) in different.items()]
    more = [f"{len(said) - most} more keys differ"] if len(said) > most else []
    return ", ".join(said[:most] + more)


def continued(task: Task, found: Checkpoint) -> Identity:
    """The identity of a training that goes on from `found`.

    Raises:
        UserError: if it cannot, which keys differ.
    """
    config, wanted = task.config, task.identity
    begun = upgraded_identity(found.identity)
    different = differences(begun, wanted)
    before = _parts(begun)
    if not different or (config.extend and set(different) == {_EXTENDED}):
        return {**wanted, _EXTENDED: before}
    if _extends(config, begun, different):
        return {**wanted, _EXTENDED: [*before, found.state["trainer"]["step"]]}
    raise UserError(
        f"{found.path} is a checkpoint of another configuration or cache: {_said(different)}; "
        "give this run another name=... or remove the checkpoint to start anew"
    )
