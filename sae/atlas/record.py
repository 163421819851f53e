"""`AtlasRecord`: what an atlas was made from, as `atlas.json` says it."""

from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from sae.base import (
    UNKNOWN,
    JsonObject,
    UserError,
    check_whole,
    read_json,
    require,
    seal,
    write_json,
)

RECORD_FILE = "atlas.json"
FORMAT = 2
EDITED = ("labels*.csv", "data/labels.js", "data/pareto.js")
"""Files of an atlas that change once it is made, those that people write among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AtlasRecord:
    """What an atlas was made from: a dictionary, a text and settings.

    None is what is not known: dashboards of other tools, which `sae atlas import` reads, do not
    say everything. An atlas of `sae analyze` has all of it.
    """

    digest: str
    """Identifies all that decides the tables."""
    dictionary: str
    dictionary_digest: str = UNKNOWN
    architecture: str | None = None
    """The dictionary's, as in its `cfg.json`."""
    model_name: str
    hook_name: str
    hook_name_out: str | None = None
    """Where the dictionary writes."""
    cache_digest: str = UNKNOWN
    data: str | None = None
    """Name of the text."""
    d_in: int | None = None
    d_sae: int
    n_rows: int | None = None
    """Tokens that were read, special ones left out."""
    n_sequences: int | None = None
    context_size: int | None = None
    n_documents: int | None = None
    n_dead: int = 0
    """Features that are active nowhere in the text."""
    without_logits: str | None = None
    """Why features have no promoted tokens, where they have none."""
    n_scored: int = 0
    """Features that were scored by what they do to the model's output."""
    n_dials: int = 0
    """Number of scored features that are dials."""
    n_weak_dials: int = 0
    """Number of scored features whose effect is beyond chance, but weak."""
    stated_dose: float | None = None
    """Norm that was added to score them, over the mean norm of the activations there."""
    max_cost: float | None = None
    """KL on neutral text that a recommended dose may cost, nats a token."""
    median_dial_cost: float | None = None
    """Median of what the recommended doses of the dials cost on other neutral text."""
    n_nulls: int | None = None
    """Random directions, and as many random features, that stand beside every score."""
    without_dials: str | None = None
    """Why no feature was scored, where none was though some were to be."""
    stability_of: str | None = None
    """Dictionaries of the same training with other seeds that features were matched with."""
    stability_mean: float | None = None
    """Mean stability of the live features."""
    stability_floor: float | None = None
    """What unrelated directions reach on average."""
    without_stability: str | None = None
    """Why no feature has a stability, where none has."""
    n_contexts: int | None = None
    """Contexts of the group `top` that a feature has at most."""
    n_bands: int
    n_band_contexts: int | None = None
    """Contexts of each band that a feature has at most."""
    n_silent: int | None = None
    """Contexts of the group `silent` that a feature has at most."""
    context_radius: int | None = None
    """Tokens that are shown on either side of the one that a context was chosen for."""
    seed: int | None = None
    folded: bool = False
    """Whether activations are those of decoder directions of norm one."""
    imported: bool = False
    """Whether the tables are made from dashboards of another tool."""
    code_version: str | None = None

    def to_json(self) -> dict[str, object]:
        """Return what `atlas.json` holds."""
        return {"format": FORMAT, **{f.name: getattr(self, f.name) for f in fields(self)}}

    @classmethod
    def from_json(cls, where: str, found: object) -> "AtlasRecord":
        """Take what the file `where` holds; keys that are not known are left out.

        Raises:
            UserError: if it is of another format, or a value is missing or of another type.
        """
        if not isinstance(found, dict):
            raise UserError(f"{where} does not hold a JSON object; run sae analyze again")
        made = found.get("format", 1)
        require(
            made == FORMAT,
            f"{where} has atlas format {made}, this is format {FORMAT}; run sae analyze again",
        )
        defaults = {f.name: f.default for f in fields(cls) if f.default is not MISSING}
        return JsonObject(where, "", found, "run sae analyze again").read(cls, **defaults)


def read_record(folder: Path) -> AtlasRecord:
    """Read the record of the atlas in `folder`.

    Raises:
        UserError: if the folder is unfinished, damaged or of another version of this package.
    """
    path = folder / RECORD_FILE
    require(
        path.is_file(),
        f"{folder} is not a finished atlas ({RECORD_FILE} is missing); run sae analyze "
        "again to repair it",
    )
    check_whole(path, "run sae analyze again, which mends it")
    return AtlasRecord.from_json(str(path), read_json(path))


def write_record(folder: Path, record: AtlasRecord) -> None:
    """Write `atlas.json`, which finishes an atlas, and the digests of all its files."""
    write_json(folder / RECORD_FILE, record.to_json())
    seal(folder, *EDITED)
