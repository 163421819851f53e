"""One dictionary to train: which training it is, of which rows, and what is there of it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

from sae.base import (
    UserError,
    damaged,
    digest,
    plain,
    remove_unfinished,
    require,
    say,
    unfinished,
    versions,
)
from sae.cache.layout import open_cache
from sae.dictionary import Record, TrainingRecord, load_dictionary
from sae.dictionary.files import CONFIG_FILE, read_record
from sae.rows.live import LiveRows
from sae.rows.own import OwnRows, OwnTensors
from sae.rows.source import Asked, CachedRows, RowSource
from sae.run import held
from sae.training.checkpoint import Checkpoint
from sae.training.config import TrainConfig

Identity = Mapping[str, object]
"""What decides the weights, by dotted key."""

_TOKENS, _EXTENDED = "training_tokens", "extended_at"
_MISSING = "nothing"
_NOT_OF_OWN_ROWS = ("harvest", "mix_rows", "max_norm_multiple", "shuffle_seed", "n_eval_rows")
_MOST_SAID = 3


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
        """Return whether the dictionary is there, whole; that of another training is refused.

        A damaged one is made anew, from the checkpoint of its last step.
        """
        path = self.config.dictionary_path
        if not path.exists():
            return False
        if wrong := damaged(path):
            say(f"train: {path / wrong[0]} is damaged; the dictionary is trained again")
        if CONFIG_FILE in wrong:
            # Of which training it is, its checkpoint says.
            return False
        training = read_record(path).training
        begun: Identity = {} if training is None else training.identity
        different = self._different(begun)
        if not different or self._extends(begun, different):
            return not different and not wrong
        if set(different) <= {_TOKENS, _EXTENDED} | self._follows_length:
            tokens, wanted = _tokens(begun), self.config.training_tokens
            require(
                tokens <= wanted,
                f"{path} has training_tokens={tokens} already, more than {wanted}; give this "
                "one another name=...",
            )
            raise UserError(
                f"{path} was trained with training_tokens={tokens}, in "
                f"{len(_extensions(begun)) + 1} parts; add extend=true to continue it, or "
                "give this one another name=..."
            )
        raise UserError(
            f"{path} holds a dictionary with another configuration or cache: "
            f"{_said(different)}; give this one another name=... or remove that one"
        )

    def is_littered(self) -> bool:
        """Return whether killed processes left something of it."""
        path = self.config.dictionary_path
        return bool(unfinished(path.parent, path.name) + unfinished(self.config.state_path))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the only process that trains it, with what killed ones left removed."""
        path, lock = self.config.dictionary_path, self.config.state_path / ".lock"
        with held(path, lock):
            remove_unfinished(self.config.state_path)
            yield

    def continued(self, found: Checkpoint) -> Identity:
        """Return the identity of the training that goes on from a checkpoint, if it can."""
        begun = found.identity
        different, before = self._different(begun), _extensions(begun)
        if self._extends(begun, different):
            before = [*before, found.state["trainer"]["step"]]
        elif different:
            raise UserError(
                f"{found.path} is a checkpoint of another configuration or cache: "
                f"{_said(different)}; give this dictionary another name=... or remove the "
                "checkpoint to start again"
            )
        return {**self.identity, _EXTENDED: before}

    def record(self, source: RowSource, identity: Identity) -> Record:
        """Return what travels with the weights: where rows come from, and the training."""
        config = self.config
        training = TrainingRecord(
            digest=digest(identity),
            identity=identity,
            architecture=config.sae.architecture,
            sae=plain(config.sae),
            optim={**plain(config.optim), "lr": config.lr},
            training_tokens=config.n_steps * config.train_batch_size_tokens,
            train_batch_size_tokens=config.train_batch_size_tokens,
            seed=config.seed,
            versions=versions(),
        )
        return replace(source.record, training=training)

    def _different(self, begun: Identity) -> dict[str, tuple[object, object]]:
        """Return the keys in which what was begun is another training, with both values."""
        # Who asks to extend does not mind that it was extended before.
        ignored = {_EXTENDED} if self.config.extend else set()
        # Older trainings say how precise the product was that found the active latents.
        ignored |= {"matmul_dtype"}
        keys = [key for key in {**self.identity, **begun} if key not in ignored]
        # What a recipe could not yet be asked for was as it is when nobody asks.
        usual = {f"sae.{field.name}": field.default for field in fields(self.config.sae)}
        before = {key: begun.get(key, usual.get(key, _MISSING)) for key in keys}
        pairs = {key: (before[key], self.identity.get(key, _MISSING)) for key in keys}
        return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}

    def _extends(self, begun: Identity, different: Mapping[str, object]) -> bool:
        """Whether what was begun is the same training, only shorter, and may be extended."""
        shorter = _tokens(begun) < self.config.training_tokens
        allowed = {_TOKENS} | self._follows_length
        return self.config.extend and shorter and {_TOKENS} <= set(different) <= allowed

    @property
    def _follows_length(self) -> set[str]:
        """The keys that are others in a longer training, because nobody gave them."""
        return {"optim.lr"} if self.config.optim.lr is None else set()


def open_source(config: TrainConfig, rows: OwnTensors | None = None) -> RowSource:
    """Open the rows of the user, of a cache, or of a model that runs beside."""
    asked = Asked(
        hook_name=config.hook_name,
        hook_name_out=config.hook_name_out,
        batch_size=config.train_batch_size_tokens,
        max_norm_multiple=config.max_norm_multiple,
        seed=config.shuffle_seed,
    )
    if rows is not None:
        _check_own(config)
        return OwnRows(rows, asked)
    if config.cache_location is None:
        return LiveRows(config.harvest, asked, config.mix_rows, config.state_path.parent)
    return CachedRows(open_cache(config.cache_location), asked)


def _check_own(config: TrainConfig) -> None:
    """Refuse what is asked of rows that the user brings, which come as they are."""
    usual = TrainConfig()
    idle = [name for name in _NOT_OF_OWN_ROWS if getattr(config, name) != getattr(usual, name)]
    # Null keeps all rows, which is what is done with them.
    said = [name for name in idle if getattr(config, name) is not None]
    require(
        not said,
        f"{', '.join(said)} has no effect on rows=..., which are used in the order in which "
        "they come; leave it out",
    )


def tasks_of(configs: Sequence[TrainConfig], source: RowSource) -> list[Task]:
    """Return the configurations with their identities; what they share is looked at once."""
    folders = {config.init_from for config in configs if config.init_from is not None}
    beginnings = {folder: load_dictionary(folder).digest for folder in folders}
    rows = _flat(source.identity)

    def identity(config: TrainConfig) -> Identity:
        # What decides the weights: not where they go, nor how progress is reported.
        return {
            **_flat({"sae": {"architecture": config.sae.architecture, **plain(config.sae)}}),
            **_flat({"optim": {**plain(config.optim), "lr": config.lr}}),
            _TOKENS: config.training_tokens,
            "dead_feature_window": config.dead_feature_window,
            "seed": config.seed,
            "init_from": beginnings.get(config.init_from or ""),
            **rows,
            _EXTENDED: [],
        }

    return [Task(config, identity(config)) for config in configs]


def _flat(value: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, entry in value.items():
        name = f"{prefix}{key}"
        found |= _flat(entry, f"{name}.") if isinstance(entry, dict) else {name: entry}
    return found


def _tokens(begun: Identity) -> int:
    tokens = begun.get(_TOKENS)
    return tokens if isinstance(tokens, int) else 0


def _extensions(begun: Identity) -> list[object]:
    found = begun.get(_EXTENDED)
    return found if isinstance(found, list) else []


def _said(different: dict[str, tuple[object, object]]) -> str:
    said = [f"{key} is {there} there, {here} here" for key, (there, here) in different.items()]
    left = len(said) - _MOST_SAID
    return ", ".join(said[:_MOST_SAID] + ([f"{left} more keys differ"] if left > 0 else []))
