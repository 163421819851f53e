"""A figure of a dictionary with all that it has to be read against.

Evaluations beyond reconstruction give these: each has its interval, how many things it was
measured on, and a floor, which is what chance or something without any training scores. A
figure that is not past its floor says nothing good of a dictionary, however high it looks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sae.base import JsonObject, plain, require
from sae.metrics import Metric, is_known, metric_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One measured figure, or why there is none."""

    key: str
    """Key of a metric in `sae.metrics`, which has its title, formula and direction."""
    value: float | None = None
    low: float | None = None
    """Lower end of the 95% interval; None where none can be given."""
    high: float | None = None
    n: int = 0
    """How many things it is measured on."""
    unit: str = ""
    """What those things are, in the plural: rows, words, features."""
    floor: float | None = None
    """What chance, or something without any training, scores."""
    floor_of: str = ""
    """What the floor is, as a phrase: `random directions`."""
    why_not: str = ""
    """Why the figure has no value, as a sentence without its full stop."""
    of: str = ""
    """Which part of the metric, where it is one of several: `k=1`, or a data set's name."""

    def __post_init__(self) -> None:
        if not is_known(self.key):
            raise ValueError(f"{self.key}: describe it in sae.metrics")
        if (self.value is None) != bool(self.why_not):
            raise ValueError(f"{self.key} has to have either a value or a reason for none")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"{self.key}={self.value} is no number; say why_not")

    @property
    def metric(self) -> Metric:
        """What the figure is, as people read it."""
        return metric_of(self.key)

    @property
    def beats_floor(self) -> bool | None:
        """Whether the whole interval is on the better side of the floor.

        None where that cannot be said: without a value, a floor or a direction. Where there is
        no interval the value itself has to be past the floor.
        """
        better = self.metric.higher_is_better
        if self.value is None or self.floor is None or better is None:
            return None
        if better:
            return (self.value if self.low is None else self.low) > self.floor
        return (self.value if self.high is None else self.high) < self.floor

    def to_json(self) -> dict[str, object]:
        """Return what `from_json` reads; what is not known is left out."""
        found: dict[str, object] = plain(self)
        return {key: value for key, value in found.items() if value not in (None, "")}

    @classmethod
    def from_json(cls, found: JsonObject) -> "Finding":
        """Read what `to_json` returned.

        Raises:
            UserError: if a field is missing or of another type, or the metric is unknown.
        """
        key = found.get("key", str)
        require(
            is_known(key),
            f"its figure {key!r} is none that this version knows",
        )
        return found.read(cls, n=0, unit="", floor_of="", why_not="", of="")


def shown(findings: Sequence[Finding], key: str, of: str = "") -> Finding | None:
    """Return the finding of a metric, if it is among these: of that part, or the only one."""
    own = [one for one in findings if one.key == key]
    exact = next((one for one in own if one.of == of), None)
    return exact or (own[0] if len(own) == 1 else None)
