"""`sae eval`: what a run's dictionaries lose on text that they were never trained on."""

from sae.evaluation.evaluate import EvalConfig, evaluate
from sae.figures import Figures
from sae.pages.compare import say_comparison, write_comparison
from sae.pages.pareto import Pareto
from sae.run import Run

__all__ = ["EvalConfig", "compare", "run"]


def run(config: EvalConfig) -> list[Figures]:
    """Evaluate, and compare all that the run has evaluated so far: table, picture and page."""
    figures = evaluate(config)
    say_comparison(write_comparison(Run.at(config.run), config.max_l0))
    return figures


def compare(config: EvalConfig, names: list[str]) -> Pareto:
    """Evaluate, and compare some of the dictionaries; the page is left to the report."""
    evaluate(config)
    return write_comparison(Run.at(config.run), config.max_l0, names, page=False)
