"""What an evaluation says about one dictionary: the record in `evals/ID.json`.

The file is flat: a key for each field, for each of `SETTINGS` that was asked of the training,
and for each of `METRICS` that was measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sae.base import UserError, check_whole, read_json, require
from sae.controls import CONTROLS
from sae.metrics import METRICS


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A number that was asked of a training, and may tell its dictionary from others."""

    key: str
    title: str
    meaning: str
    form: str
    """How it is written, in Python's way."""
    label: str = ""
    """How it names a point of a picture, such as `k = {:g}`; empty if it never does."""
    penalty: bool = False
    """Whether it sets how sparse the features are; a training has one of these."""


SETTINGS: dict[str, Setting] = {
    setting.key: setting
    for setting in (
        Setting(
            key="k",
            title="k",
            meaning="Features kept on a token (TopK), or on average over a batch (BatchTopK).",
            form="d",
            label="k = {:g}",
            penalty=True,
        ),
        Setting(
            key="target_l0",
            title="Target L0",
            meaning="L0 that the training was to reach by moving its own penalty.",
            form=".3g",
            label="target = {:g}",
            penalty=True,
        ),
        Setting(
            key="l1_coefficient",
            title="L1 weight",
            meaning="λ in the training loss: squared error + λ · Σ fⱼ‖W_dec,j‖. Larger asks "
            "for fewer active features.",
            form=".3g",
            label="λ = {:g}",
            penalty=True,
        ),
        Setting(
            key="l0_coefficient",
            title="L0 weight",
            meaning="λ in the training loss: squared error + λ · penalty on the number of "
            "active features.",
            form=".3g",
            label="λ = {:g}",
            penalty=True,
        ),
        Setting(
            key="d_sae",
            title="Features",
            meaning="Number of features (latents) in the dictionary, dead ones included.",
            form=",",
            label="{:,} latents",
        ),
        Setting(
            key="lr",
            title="Learning rate",
            meaning="At its peak.",
            form=".3g",
            label="lr {:g}",
        ),
        Setting(
            key="seed",
            title="Seed",
            meaning="Of the weights that training began with.",
            form="d",
        ),
        Setting(
            key="training_tokens",
            title="Tokens trained on",
            meaning="Activations seen in training, repeats included.",
            form=",",
            label="{:,} tokens",
        ),
    )
}
"""By key, in the order in which they are shown, and may name the points of a picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Figures of one dictionary on held-out text, and what they were measured on."""

    id: str
    """Name of the dictionary in its run."""
    architecture: str
    """What the dictionary is saved as, such as `jumprelu`."""
    training_architecture: str | None = None
    """The recipe it was trained by, such as `batchtopk`; None if that is not known."""
    control: str | None = None
    """Which control it is of another dictionary, such as `frozen_decoder`; None for others."""
    hook_name: str
    hook_name_out: str | None = None
    digest: str | None = None
    """Identifies the dictionary and all that its figures depend on."""
    dictionary_digest: str | None = None
    training_digest: str | None = None
    data: str | None = None
    n_rows: int = 0
    """Held-out rows behind the reconstruction's figures."""
    n_density_rows: int = 0
    """Rows over which dead features are counted, training rows among them."""
    n_behaviour_tokens: int = 0
    """Held-out tokens behind CE and KL; 0 where these were not measured."""
    asked_behaviour_tokens: int = 0
    seconds: float | None = None
    training_seconds: float | None = None
    density_histogram: Mapping[str, list[float]] | None = None
    """`log10_edges` and `counts` of the live features by the share of rows they fire on."""
    settings: Mapping[str, float] = field(default_factory=dict)
    """What was asked of the training, by the keys of `SETTINGS`."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Every figure, by its key in `sae.metrics.METRICS`."""
    intervals: Mapping[str, list[float]] = field(default_factory=dict)
    """Ends of the 95% interval of a figure, by its key, where one was measured."""
    not_measurable: Mapping[str, str] = field(default_factory=dict)
    """Why a figure that was asked for has no value, by its key; in the file it is null."""

    def __post_init__(self) -> None:
        for name, table in _TABLES.items():
            unknown = sorted(set(getattr(self, name)) - set(table))
            if unknown:
                raise ValueError(f"{', '.join(unknown)} of {name}: describe it in sae.metrics")

    @property
    def trained_as(self) -> str:
        """The recipe, or what it is saved as where it is not known; a control says which."""
        recipe = self.training_architecture or self.architecture
        return recipe if self.control is None else f"{recipe}, {CONTROLS[self.control].title}"

    @property
    def places(self) -> tuple[str, ...]:
        """The hook that is read and, of a transcoder, the one that is written."""
        return tuple(dict.fromkeys(filter(None, (self.hook_name, self.hook_name_out))))

    def to_json(self) -> dict[str, object]:
        """Return the flat record; what is not known is left out."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _TABLES}
        flat = own | dict(self.settings) | dict(self.values)
        known = {key: value for key, value in flat.items() if value not in (None, {})}
        return known | dict.fromkeys(self.not_measurable)

    @classmethod
    def from_json(cls, found: object) -> "Figures":
        """Return the figures that a flat record holds; keys that nobody knows are left alone.

        Raises:
            UserError: if something is missing or of another kind.
        """
        if not isinstance(found, dict):
            raise UserError("it holds no record")
        there = {key: value for key, value in found.items() if value is not None}
        for name in ("id", "architecture", "hook_name", "l0", "explained_variance"):
            require(name in there, f"it has no {name}")
        kinds: dict[str, Any] = {f.name: f.type for f in fields(cls) if f.name not in _TABLES}
        # What is parametrised cannot be asked for: a histogram is a dict here.
        kinds |= dict.fromkeys(_NESTED, dict) | dict.fromkeys(
            (*SETTINGS, *METRICS), float | int
        )
        for name, kind in kinds.items():
            value = there.get(name)
            right = value is None or isinstance(value, kind)
            require(right, f"its {name} is {str(value)[:40]!r}")
        tables = {
            name: {key: there[key] for key in table if key in there}
            for name, table in _TABLES.items()
        }
        own = {f.name: there[f.name] for f in fields(cls) if f.name in there}
        return cls(**own | tables)

    @classmethod
    def read(cls, path: Path) -> "Figures":
        """Read the figures in the file `path`.

        Raises:
            UserError: if it is not what `sae eval` writes, or wrote.
        """
        check_whole(path, "run sae eval again, which makes it anew")
        try:
            return cls.from_json(read_json(path))
        except UserError as error:
            raise UserError(
                f"{path} is not a file that sae eval writes, {error}; delete it"
            ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class ShrinkingCost:
    """What was made smaller in an exported dictionary, and what that cost."""

    n_dropped: int
    d_sae: int
    """Latents before."""
    n_rows: int
    """Held-out activations that `before` and `after` were both measured on."""
    n_behaviour_tokens: int
    """Held-out tokens behind CE and KL; 0 where these were not measured."""
    before: Mapping[str, float]
    """Figures by their key in `sae.metrics.METRICS`."""
    after: Mapping[str, float]


_NESTED = ("density_histogram", "intervals", "not_measurable")
_TABLES: dict[str, Mapping[str, object]] = {"settings": SETTINGS, "values": METRICS}
