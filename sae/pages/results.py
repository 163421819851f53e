"""What `sae.eval` and `sae.steer` return: plain lists and dicts that a notebook shows well."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sae.base.notebook import html_table
from sae.controls import CONTROLS
from sae.figures import Figures
from sae.metrics import Metric, shown_in
from sae.pages.pareto import Pareto
from sae.pages.pareto_picture import pareto_figure
from sae.pages.steering_picture import steering_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Evaluation(list[Figures]):
    """The figures of the dictionaries that were evaluated, in their order.

    A notebook shows a table with controls below what they belong to; `plot()` is the picture of
    sparsity against fidelity.
    """

    def __init__(self, figures: Sequence[Figures], pareto: Pareto) -> None:
        """Keep figures beside those of all that the run has evaluated."""
        super().__init__(figures)
        self.pareto = pareto
        """All dictionaries of the run that have figures, and which is recommended."""

    def to_pandas(self) -> Any:
        """Return a data frame with a record for each dictionary, a column for each figure."""
        import pandas

        about = ("id", "architecture", "control", "hook_name", "n_rows")
        return pandas.DataFrame(
            {**{name: getattr(one, name) for name in about}, **one.settings, **one.values}
            for one in self
        )

    def plot(self) -> "Figure":
        """Return the picture of sparsity against fidelity, of all dictionaries of the run."""
        return pareto_figure(self.pareto)

    def __repr__(self) -> str:
        """Return one line: which dictionaries have figures."""
        return f"Evaluation of {', '.join(one.id for one in self)}"

    def _repr_html_(self) -> str:
        shown = [m for m in shown_in("table") if any(m.key in one.values for one in self)]
        records = []
        # What is a control stands below what it belongs to.
        for one in sorted(self, key=lambda one: one.control is not None):
            kind = "" if one.control is None else CONTROLS[one.control].title
            records.append((one.id, kind, *(_with_interval(one, metric) for metric in shown)))
        return html_table(
            ("dictionary", "control", *(metric.title for metric in shown)),
            records,
            note="In brackets: 95% intervals over the held-out sequences. "
            f"{self.pareto.recommended.id} is recommended: {self.pareto.criterion}",
        )


def _with_interval(figures: Figures, metric: Metric) -> str:
    """Return a figure as a table shows it, with its 95% interval where one was measured."""
    if metric.key not in figures.values:
        return ""
    told = format(figures.values[metric.key], metric.form)
    ends = figures.intervals.get(metric.key)
    return f"{told} [{', '.join(format(end, metric.form) for end in ends)}]" if ends else told


class Steering(dict[str, Any]):
    """What steering has found: `summary`, `features` and perhaps `vocabulary`.

    A notebook shows steering beside its baselines; `plot()` is the picture of effect and cost.
    """

    def to_pandas(self) -> Any:
        """Return a data frame with a record for each feature, arm and strength.

        Of each figure there is the mean and both ends of its 95% interval: `shift`,
        `shift_low`, `shift_high`, and so on.
        """
        import pandas

        return pandas.DataFrame(
            {"feature": feature["feature"], **_flat(measured)}
            for feature in self["features"]
            for measured in feature["measurements"]
        )

    def plot(self) -> "Figure":
        """Return the picture of effect against cost, steering beside its baselines."""
        return steering_figure(self["summary"])

    def __repr__(self) -> str:
        """Return one line: the headline."""
        return f"Steering: {self['summary']['headline']}"

    def _repr_html_(self) -> str:
        summary = self["summary"]
        records = [
            (arm["title"], *(_interval(arm["figures"].get(key)) for key in _SHOWN))
            for arm in summary.get("arms", ())
        ]
        head = ("", *_SHOWN.values())
        return html_table(head, records, title=summary["headline"], note=summary["read_back"])


_SHOWN = {
    "shift": "own-token shift, nats",
    "round_trip": "found again in the text",
    "kl": "cost: KL, nats a token",
    "perplexity": "perplexity",
    "longest_repeat": "longest repeat",
}


def _flat(measured: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in measured.items():
        if isinstance(value, Mapping):
            found |= {
                key: value["mean"],
                f"{key}_low": value["low"],
                f"{key}_high": value["high"],
            }
        else:
            found[key] = value
    return found


def _interval(figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return ""
    return f"{figure['mean']:.3g} [{figure['low']:.3g}, {figure['high']:.3g}]"
