"""Where on Neuronpedia features go: ids of a model and of a source, and whose they are."""

import re
from dataclasses import dataclass

from sae.atlas import AtlasRecord
from sae.base import UserError, require

DEFAULT_CREATOR_ID = "clkht01d40000jv08hvalcvly"
"""Neuronpedia's own user, whom SAEDashboard names where nobody is named."""
DEFAULT_CREATOR = "sae-atlas"
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SOURCE = re.compile(r"\d{1,4}-[A-Za-z0-9][A-Za-z0-9._-]{0,120}")
_FORMS = {
    "model_id": (
        _PART,
        "Neuronpedia's ids have letters, digits, dots, dashes and underscores, as gpt2-small",
    ),
    "source": (
        _SOURCE,
        "Neuronpedia's are a layer, a dash and the name of a set, as 8-res-jb",
    ),
    "creator_id": (_PART, "give the id of a user, letters and digits"),
}
_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
_KINDS = (("resid", "res"), ("mlp", "mlp"), ("attn", "att"))
_MODEL_IDS = {"gpt2": "gpt2-small"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where on Neuronpedia the features go, and whose they are."""

    model_id: str
    source: str
    """`{layer}-{source set}`."""
    creator: str = DEFAULT_CREATOR
    creator_id: str = DEFAULT_CREATOR_ID

    def __post_init__(self) -> None:
        for name, (pattern, said) in _FORMS.items():
            value = getattr(self, name)
            require(pattern.fullmatch(value) is not None, f"{name}={value}; {said}")
        require(
            self.creator.isprintable() and self.creator != "",
            f"creator={self.creator!a}; give a name that can be shown",
        )

    @property
    def layer(self) -> int:
        """The number that the source begins with."""
        return int(self.source.split("-", 1)[0])

    @property
    def source_set(self) -> str:
        """The source without its layer."""
        return self.source.split("-", 1)[1]


def place_of(
    record: AtlasRecord, model_id: str | None = None, source: str | None = None, **who: str
) -> Place:
    """Return where an atlas goes; missing ids are made of its model, hook and name.

    Raises:
        UserError: for ids that Neuronpedia does not take, or a hook that names no layer.
    """
    name = record.model_name.rstrip("/").split("/")[-1].lower()
    if source is None:
        hook = record.hook_name
        layer = _LAYER.search(hook)
        if layer is None:
            raise UserError(
                f"hook {hook} names no layer; give source=LAYER-SET, such as 0-res-mine"
            )
        kind = next((short for word, short in _KINDS if word in hook), "sae")
        kind = "transcoder" if record.hook_name_out not in (None, hook) else kind
        source = f"{layer[1]}-{kind}-{_slug(record.dictionary.lower())}"
    return Place(model_id or _slug(_MODEL_IDS.get(name, name)), source, **who)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:100] or "atlas"
