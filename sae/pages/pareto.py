"""A run's dictionaries, sparsity against fidelity: which one to take, as CSV and as text."""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sae.base import UserError, read_object, require
from sae.figures import SETTINGS, Figures
from sae.metrics import METRICS, shown_in

_CRITERION = (
    "the highest explained variance among those with an L0 of at most {l0:g}; if there is "
    "none, the lowest L0."
)
_OTHER_HOOKS = " Hooks differ: compare within a hook only."


@dataclass(frozen=True, kw_only=True, slots=True)
class Pareto:
    """The dictionaries of one run, to be compared."""

    run: str
    """Folder of the run."""
    model_name: str
    d_in: int
    max_l0: float
    """Up to this L0 the most faithful dictionary is recommended."""
    dictionaries: tuple[Figures, ...]

    @property
    def recommended(self) -> Figures:
        """The dictionary to look at, as `criterion` states."""
        trained = [one for one in self.dictionaries if one.control is None]
        candidates = trained or self.dictionaries
        sparse = [one for one in candidates if one.values["l0"] <= self.max_l0]
        if sparse:
            return max(sparse, key=lambda one: one.values["explained_variance"])
        return min(candidates, key=lambda one: one.values["l0"])

    @property
    def criterion(self) -> str:
        """How `recommended` is chosen, in a sentence for people."""
        several = len({one.places for one in self.dictionaries}) > 1
        return _CRITERION.format(l0=self.max_l0) + (_OTHER_HOOKS if several else "")

    def to_json(self) -> dict[str, object]:
        """Return what `pareto.json` holds: all figures of the dictionaries but histograms."""
        lean = [replace(one, density_histogram=None).to_json() for one in self.dictionaries]
        return {
            "run": self.run,
            "model_name": self.model_name,
            "hook_name": self.recommended.hook_name,
            "d_in": self.d_in,
            "max_l0": self.max_l0,
            "recommended": self.recommended.id,
            "criterion": self.criterion,
            "dictionaries": lean,
        }

    @classmethod
    def read(cls, path: Path) -> "Pareto":
        """Return the dictionaries that a `pareto.json` compares.

        Raises:
            UserError: if it is not what `sae eval` writes.
        """
        found = read_object(path, "run sae eval again")
        try:
            dictionaries = tuple(map(Figures.from_json, found.get("dictionaries", list)))
            require(bool(dictionaries), "it compares nothing")
        except UserError as error:
            raise UserError(
                f"{path} is not what sae eval writes ({error}); run sae eval again"
            ) from error
        return cls(
            run=found.get("run", str),
            model_name=found.get("model_name", str),
            d_in=found.get("d_in", int),
            max_l0=found.get("max_l0", float),
            dictionaries=dictionaries,
        )

    def for_page(self, current: str | None = None) -> dict[str, object]:
        """Return what a page (of the dictionary `current`) shows: points, and their meaning."""
        return {
            "dictionaries": [
                point.figures.to_json() | {"series": point.series, "label": point.label}
                for point in points(self.dictionaries)
            ],
            "chosen": {"id": self.recommended.id, "criterion": self.criterion},
            "max_l0": self.max_l0,
            "current": current,
            "metrics": [asdict(metric) for metric in METRICS.values()],
            "settings": [asdict(setting) for setting in SETTINGS.values()],
        }


@dataclass(frozen=True, slots=True)
class Point:
    """A dictionary in a picture: its series, and what tells it from others in that."""

    figures: Figures
    series: str
    label: str

    @property
    def told_by_id(self) -> bool:
        """Whether nothing but its name tells it from another one."""
        return self.label == self.figures.id


def points(dictionaries: Sequence[Figures]) -> list[Point]:
    """Return the dictionaries with the series and the label that place each in a picture.

    Within an architecture the first setting that differs (penalty, width, learning rate, length
    of training) labels the points; what else differs, the hook too, parts it into series.
    Dictionaries that differ in their seed alone share both; others that do are told by id.
    """
    by_architecture: dict[str, list[Figures]] = defaultdict(list)
    for one in dictionaries:
        by_architecture[one.trained_as].append(one)
    found = []
    for architecture, group in by_architecture.items():
        traits = [_traits(one) for one in group]
        differing = [name for name in traits[0] if len({trait[name] for trait in traits}) > 1]
        swept = next((name for name in differing if name != "hook"), "penalty")
        for one, trait in zip(group, traits, strict=True):
            parts = [architecture, *(trait[name] for name in differing if name != swept)]
            found.append(Point(one, ", ".join(filter(None, parts)), trait[swept]))
    same = Counter((p.series, p.label, p.figures.settings.get("seed")) for p in found)
    places = {}
    for p in found:
        alone = same[p.series, p.label, p.figures.settings.get("seed")] == 1
        places[p.figures.id] = p if alone else replace(p, label=p.figures.id)
    return [places[one.id] for one in dictionaries]


def _traits(figures: Figures) -> dict[str, str]:
    """Return what may tell a dictionary from others, as it is written in a picture."""
    told = {
        key: setting.label.format(figures.settings[key]) if key in figures.settings else ""
        for key, setting in SETTINGS.items()
    }
    penalties = [told.pop(key) for key, setting in SETTINGS.items() if setting.penalty]
    penalty = next(filter(None, penalties), "")
    return {"penalty": penalty, **told, "hook": " to ".join(figures.places)}


def as_csv(pareto: Pareto) -> str:
    """One line a dictionary, with every setting and metric; what is not known is left empty."""
    columns = (
        *("id", "architecture", *SETTINGS, *METRICS),
        *("training_seconds", "hook_name", "hook_name_out", "recommended"),
    )
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for one in pareto.dictionaries:
        # What was trained is not always what it is saved as.
        own = {"architecture": one.trained_as, "recommended": one is pareto.recommended}
        writer.writerow(one.to_json() | own)
    return out.getvalue()


def as_text(pareto: Pareto) -> str:
    """Return the table for a terminal; of several, `*` marks the one that is recommended."""
    rows, several = pareto.dictionaries, len(pareto.dictionaries) > 1
    asked = {key for one in rows for key in (*one.values, *one.not_measurable)}
    shown = [m for m in shown_in("table") if m.key in asked]
    cells = [["dictionary", *(metric.short or metric.title for metric in shown)]]
    for one in rows:
        known = one.values
        figures = (format(known[m.key], m.form) if m.key in known else "–" for m in shown)
        cells.append([one.id, *figures])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    marks = ["*" if several and one is pareto.recommended else " " for one in rows]
    lines = [
        "  ".join(
            [f"{mark} {first:<{widths[0]}}"]
            + [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
        ).rstrip()
        for mark, (first, *rest) in zip([" ", *marks], cells, strict=True)
    ]
    if rows[0].n_rows:
        lines.append(f"  on {rows[0].n_rows:,} held-out rows")
    reasons = ((m, one.not_measurable.get(m.key)) for m in shown for one in rows)
    lines += dict.fromkeys(
        f"  – {m.title} is not measurable: {why}" for m, why in reasons if why
    )
    return "\n".join(lines + ([f"* recommended: {pareto.criterion}"] if several else []))
