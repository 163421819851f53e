"""`sae eval`: what a run's dictionaries are worth on text that they were never trained on."""

from collections.abc import Sequence

from sae.base import UserError, say
from sae.evaluation.evaluate import EvalConfig, evaluate
from sae.evaluation.measurements import StandardSuite
from sae.evaluation.suite import Subject, gather
from sae.figures import Figures
from sae.findings import Finding
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
        _gathered(config)
    return figures


def _gathered(config: EvalConfig) -> None:
    """Run the standard suite, and write what it found for people and for SAEBench."""
    run, standard = Run.at(config.run), StandardSuite()

    def finished(subject: Subject, figures: Figures, findings: Sequence[Finding]) -> None:
        try:
            standard.write_saebench(run.saebench, subject, figures, findings)
        except UserError as error:
            say(f"eval: no files for SAEBench of {subject.name}: {error}")

    gather(config, standard.measurements(), finished)
    say(f"eval: what {run.folder} is worth: {write_evidence(run)}")
