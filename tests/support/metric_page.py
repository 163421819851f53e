"""What `docs/metrics.md` says about the metrics, from the table of them."""

from sae.figures import SETTINGS
from sae.metrics import METRICS, SUITE, Metric

WHERE = {
    "table": "table in the terminal",
    "picture": "panel of `pareto.png` and of the pages",
    "tile": "head of the report",
}
BEGINNING = """# Metrics

Every figure that `sae eval` computes, one formula for each name; the names are SAELens's where
it has one. This page is written from `sae/metrics/`.

- x is a row of activations at the hook, x̂ its reconstruction, x̄ the mean of all rows, and fⱼ
  the activation of feature j. For a transcoder x is the row that it is to reconstruct, at the
  hook that it writes.
- Sums and means are over the held-out rows of the cache, in float64, with one global mean; they
  do not depend on the batch size. Rows are text positions: special tokens are left out, and so
  are rows above ten times the median norm (attention sinks), unless the dictionary was trained
  with them.
- CE is the cross-entropy of the next token, KL the divergence `KL(clean ‖ replaced)` of
  next-token probabilities, both in nats a token, over held-out positions whose own token and
  next token are both text. *clean* is the model as it is. In the other runs its activations at
  all text positions are replaced: by the reconstruction (*sae*), by zeros (*zero*), by their
  mean (*mean*). An encoder predicts no next token and has none of these.
- Dead features are counted over the held-out rows and 131,072 training rows (`density_rows=`),
  as rare features need more rows than are held out.

All figures are in `evals/ID.json`, `pareto.json` and `pareto.csv`, in the table of
`report.html` and in the card of an export.
"""
SUITE_TITLE = """## What `suite=standard` measures besides

Each with its interval, how many things it was measured on, and a floor; how they are made and
what misleads is in [evidence.md](evidence.md).
"""
SETTINGS_TITLE = """## What tells dictionaries apart

Beside its figures a record has what was asked of the training.
"""


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def better(metric: Metric) -> str:
    return {True: "higher", False: "lower", None: "–"}[metric.higher_is_better]


def page() -> str:
    """All of `docs/metrics.md`."""
    figures = "".join(
        row(
            f"`{metric.key}`",
            f"**{metric.title}**: {metric.meaning}",
            f"`{metric.formula}`",
            better(metric),
            metric.scale,
            "; ".join(WHERE[place] for place in metric.where),
        )
        for metric in METRICS.values()
    )
    settings = "".join(
        row(f"`{setting.key}`", setting.title, setting.meaning) for setting in SETTINGS.values()
    )
    suite = "".join(
        row(
            f"`{metric.key}`",
            f"**{metric.title}**: {metric.meaning}",
            # A bar ends a cell, in code too.
            f"`{metric.formula}`".replace("|", "\\|"),
            better(metric),
            metric.scale,
        )
        for metric in SUITE.values()
    )
    headings = ("name", "what it is", "formula", "better", "how to read it", "also shown")
    return (
        f"{BEGINNING}\n{row(*headings)}{'|---' * 6}|\n{figures}\n"
        f"{SUITE_TITLE}\n{row(*headings[:-1])}{'|---' * 5}|\n{suite}\n"
        f"{SETTINGS_TITLE}\n{row('name', 'title', 'what it is')}{'|---' * 3}|\n{settings}"
    )
