"""`TextRecord`: which text something was computed from, as it is kept beside the result."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sae.base import JsonObject


@dataclass(frozen=True, slots=True)
class TextRecord:
    """The text of a cache or of a training."""

    name: str | None = None
    """Name of the text as in `data.name`; None if the file does not say."""
    held_out_fraction: float | None = None
    """Share of the documents that is never trained on; None if the file does not say."""
    n_documents: int | None = None
    """Documents that were used; None of a text that was never read to its end."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """All that is in the file, these three included."""

    def to_json(self) -> dict[str, object]:
        """Return what `from_json` reads."""
        return dict(self.settings)

    @classmethod
    def from_json(cls, found: JsonObject) -> "TextRecord":
        """Read the `data` of a cache or of a dictionary; values of wrong types are refused."""
        name = found.get("name", str) if "name" in found else None
        key = "held_out_fraction"
        fraction = found.get(key, float) if key in found else None
        documents = found.values.get("documents")
        n = documents.get("used") if isinstance(documents, dict) else None
        return cls(name, fraction, n if type(n) is int else None, dict(found.values))
