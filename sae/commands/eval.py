"""`sae eval`: what a run's dictionaries are worth on text that they were never trained on."""

from sae.base import say
from sae.evaluation.evaluate import EvalConfig, evaluate
from sae.evaluation.measurements import standard_suite
from sae.evaluation.suite import gather
from sae.figures import Figures
from sae.pages.compare import say_comparison, write_comparison
from sae.pages.evidence import write_evidence
from sae.pages.pareto import Pareto
from sae.run import Run

__all__ = ["EvalConfig", "compare", "run"]


def run(config: EvalConfig) -> list[Figures]:
    """Evaluate, and compare all that the run has evaluated so far: table, picture and page."""
    figures = _evaluated(config)
    say_comparison(write_comparison(Run.at(config.run), config.max_l0))
    return figures


def compare(config: EvalConfig, names: list[str]) -> Pareto:
    """Evaluate, and compare some of the dictionaries; the page is left to the report."""
    _evaluated(config)
    return write_comparison(Run.at(config.run), config.max_l0, names, page=False)


def _evaluated(config: EvalConfig) -> list[Figures]:
    figures = evaluate(config)
    if config.suite == "standard":
        gather(config, standard_suite())
        say(f"eval: {write_evidence(Run.at(config.run))}")
    return figures
