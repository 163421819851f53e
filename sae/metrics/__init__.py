"""Every figure that says how good a dictionary is: name, formula, and where it is shown.

This is the only place that says so: the evaluation may write no figure that is not in here, and
tables, pictures, pages, cards and documentation take titles, formulas and formats from here.
In the formulas x is a row of activations, x̂ its reconstruction, x̄ the mean of all rows, and fⱼ
the activation of feature j. Means and sums are over the held-out rows, in float64. Names are
SAELens's where it has one.
"""

from sae.metrics.held_out import METRICS
from sae.metrics.metric import Metric, Place
from sae.metrics.suite import SUITE
from sae.metrics.truth import TRUTH

__all__ = ["METRICS", "SUITE", "TRUTH", "Metric", "Place", "is_known", "metric_of", "shown_in"]

_ALL = {**SUITE, **TRUTH}


def is_known(key: str) -> bool:
    """Return whether a metric has that key."""
    return key in METRICS or key in _ALL


def metric_of(key: str) -> Metric:
    """Return the metric of that key, whatever measures it.

    Raises:
        KeyError: if no metric has it.
    """
    return METRICS[key] if key in METRICS else _ALL[key]


def shown_in(place: Place) -> list[Metric]:
    """Return the metrics that are shown in `place`."""
    return [metric for metric in METRICS.values() if place in metric.where]
