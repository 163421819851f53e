"""`Record`: what a dictionary knows of where it comes from, and how files say it.

In a file it is the `metadata` of SAELens's `cfg.json`: SAELens's own keys, and ours under
`sae_atlas`. Texts of strangers are judged here and nowhere else: what is of an unexpected type
outside of `sae_atlas` is kept and passed on but not used, and a `sae_atlas` that is not as we
write it is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from sae.base import JsonObject, taken
from sae.controls import CONTROLS
from sae.core.scaling import SINK_NORM_MULTIPLE
from sae.models.record import ModelRecord
from sae.text.record import TextRecord

OURS = "sae_atlas"
"""The key of our own record in a file's metadata."""
_SEEDS = ("seed", "shuffle_seed")
_IDENTITY_BEFORE = {"output_hook_name": "hook_name_out"}
"""Keys of a training's identity that had other names before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """How a dictionary was trained here."""

    digest: str
    """Identifies the training: of `identity`."""
    identity: Mapping[str, object]
    """Everything that decides the weights, by dotted key."""
    architecture: str
    """The recipe, as in `sae=`; what it is saved as is the dictionary's `architecture`."""
    sae: Mapping[str, object]
    """Settings of the recipe."""
    optim: Mapping[str, object]
    """Settings of the optimiser."""
    training_tokens: int
    """Rows of activations that were trained on, repeated ones counted each time."""
    train_batch_size_tokens: int
    seed: int
    versions: Mapping[str, str]
    """Versions of this package and of those that decide numbers."""

    def is_reseeded(self, other: "TrainingRecord") -> bool:
        """Return whether it is the other training with another seed, and nothing else."""
        mine, theirs = (
            {k: v for k, v in one.identity.items() if k not in _SEEDS} for one in (self, other)
        )
        return mine == theirs and self.seed != other.seed


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a dictionary of another tool was imported from."""

    source: str
    """Name of the folder, or its address on the Hub."""
    format: str | None = None
    """Format that was asked for; None where the files told."""
    record: Mapping[str, object] = field(default_factory=dict)
    """What `sae_atlas` said in the files that were imported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Where a dictionary comes from: model, text and training, as far as its files say."""

    model_name: str | None = None
    """The model that it is of, as others know it."""
    model: ModelRecord | None = None
    """The model that its activations were read from, if that was recorded."""
    context_size: int | None = None
    """Tokens in a sequence."""
    prepend_bos: bool | None = None
    """Whether each sequence began with the model's beginning token."""
    bos_token_id: int | None = None
    """Id of the token that was put before every sequence."""
    exclude_special_tokens: bool | None = None
    """Whether activations of special tokens were left out."""
    dataset_path: str | None = None
    """Name of the text."""
    text: TextRecord | None = None
    """The text, if it was recorded."""
    cache_digest: str | None = None
    """Identifies the cache that was trained on."""
    max_norm_multiple: float | None = SINK_NORM_MULTIPLE
    """Activations above this multiple of the median norm were left out; None kept all."""
    training: TrainingRecord | None = None
    """How it was trained, if that was here."""
    imported: Origin | None = None
    """Where the dictionary was imported from, if it was not trained here."""
    transcoder: bool = False
    """Whether the file says that it is a transcoder, which its hooks may leave open."""
    others: Mapping[str, object] = field(default_factory=dict)
    """Whatever else the file says, as it is."""

    @property
    def training_digest(self) -> str | None:
        """Identifies the training, if it was here."""
        return None if self.training is None else self.training.digest

    @property
    def control(self) -> str | None:
        """Which control of another dictionary it is, a kind of `CONTROLS`; None for others."""
        if self.model is not None and self.model.random_weights:
            return "random_model"
        frozen = None if self.training is None else self.training.sae.get("frozen")
        kinds = {one.frozen: one.kind for one in CONTROLS.values() if one.frozen != "none"}
        return kinds.get(str(frozen))

    def to_json(self) -> dict[str, object]:
        """Return the metadata of a file, but for the hooks; what is not known is left out."""
        about: dict[str, object] = {
            "cache_digest": self.cache_digest,
            "model": self.model and self.model.to_json(),
            "data": self.text and self.text.to_json(),
            "bos_token_id": self.bos_token_id,
            **(asdict(self.training) if self.training else {}),
        }
        if origin := self.imported:
            said = {"record": dict(origin.record)} if origin.record else {}
            about["imported"] = {"from": origin.source, "format": origin.format, **said}
        ours = _known(about)
        if ours or self.max_norm_multiple != SINK_NORM_MULTIPLE:
            ours["max_norm_multiple"] = self.max_norm_multiple
        found: dict[str, object] = {
            "model_name": self.model_name,
            "model_class_name": self.model and self.model.class_name,
            "context_size": self.context_size,
            "prepend_bos": self.prepend_bos,
            "exclude_special_tokens": self.exclude_special_tokens,
            "dataset_path": self.dataset_path,
            "training_architecture": self.training and self.training.architecture,
            "transcoder": self.transcoder or None,
            OURS: ours or None,
        }
        return {**self.others, **_known(found)}

    @classmethod
    def from_json(cls, where: str, metadata: Mapping[str, object]) -> "Record":
        """Read a file's metadata, but for the hooks.

        Half a character becomes `?`, and what is no number null: neither is JSON that all read.

        Args:
            where: names the file, for the sentence of an error.

        Raises:
            UserError: if `sae_atlas` in it is not as we write it.
        """
        # A round trip through JSON mends both.
        text = json.dumps({**metadata}, ensure_ascii=False).encode("utf-8", "replace")
        found: dict[str, object] = json.loads(text, parse_constant=lambda _: None)
        ours = ours_in(where, found)
        found.pop(OURS, None)
        model = ModelRecord.from_json(ours.part("model")) if "model" in ours else None
        if model is not None:
            found.pop("model_class_name", None)
        training = _training_from(ours) if "training_tokens" in ours else None
        if training is not None:
            found.pop("training_architecture", None)
        limit = ours.maybe("max_norm_multiple", float)
        return cls(
            model_name=taken(found, "model_name", str),
            model=model,
            context_size=taken(found, "context_size", int),
            prepend_bos=taken(found, "prepend_bos", bool),
            bos_token_id=ours.maybe("bos_token_id", int),
            exclude_special_tokens=taken(found, "exclude_special_tokens", bool),
            dataset_path=taken(found, "dataset_path", str),
            text=TextRecord.from_json(ours.part("data")) if "data" in ours else None,
            cache_digest=ours.maybe("cache_digest", str),
            max_norm_multiple=limit if "max_norm_multiple" in ours else SINK_NORM_MULTIPLE,
            training=training,
            imported=_origin_from(ours.part("imported")) if "imported" in ours else None,
            transcoder=taken(found, "transcoder", bool) or False,
            others=found,
        )


def ours_in(where: str, metadata: Mapping[str, object]) -> JsonObject:
    """Return our own record in the metadata of the file `where`, empty where it has none.

    Raises:
        UserError: if it is no object.
    """
    cure = f"take {OURS} out of the file"
    return JsonObject(where, "", {OURS: {}, **metadata}, cure).part(OURS)


def upgraded_identity(identity: Mapping[str, object]) -> dict[str, object]:
    """Return what decides a training under the names that its keys have now."""
    return {_IDENTITY_BEFORE.get(key, key): value for key, value in identity.items()}


def _known(found: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in found.items() if value is not None}


def _training_from(ours: JsonObject) -> TrainingRecord:
    found = ours.read(TrainingRecord)
    ours.part("versions").get("sae-atlas", str)
    versions = {name: str(version) for name, version in found.versions.items()}
    return replace(found, identity=upgraded_identity(found.identity), versions=versions)


def _origin_from(found: JsonObject) -> Origin:
    record = found.maybe("record", dict) or {}
    return Origin(found.get("from", str), found.maybe("format", str), record)
