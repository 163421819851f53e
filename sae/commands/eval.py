"""`sae eval`: what a run's dictionaries are worth on text that they were never trained on."""

from dataclasses import replace

from sae.base import UserError, say
from sae.evaluation.evaluate import EvalConfig, evaluate
from sae.evaluation.measurements import StandardSuite
from sae.evaluation.suite import Subject, gather
from sae.exchange.saebench_results import Measured, write_saebench
from sae.pages.compare import say_comparison, write_comparison
from sae.pages.evidence import write_evidence
from sae.pages.pareto import Pareto
from sae.pages.results import Evaluation
from sae.run import Run, keep_settings

__all__ = ["EvalConfig", "compare", "run"]


def run(config: EvalConfig) -> Evaluation:
    """Evaluate, and compare all that the run has evaluated so far: table, picture and page."""
    figures = evaluate(config)
    _run_suite(config)
    run = Run.at(config.run)
    pareto = write_comparison(run, config.max_l0)
    say_comparison(pareto)
    keep_settings(config, "eval", run.pareto("json"))
    return Evaluation(figures, pareto)


def compare(config: EvalConfig, names: list[str]) -> Pareto:
    """Evaluate, and compare some of the dictionaries; the page is left to the report."""
    evaluate(config)
    _run_suite(config)
    return write_comparison(Run.at(config.run), config.max_l0, names, page=False)


def _run_suite(config: EvalConfig) -> None:
    """Run the suite that is asked for, and write its findings for people and for SAEBench."""
    if config.suite != "standard":
        return
    run, standard = Run.at(config.run), StandardSuite()
    gather(
        config,
        standard.measurements(),
        lambda subject, figures, findings: _write(
            run,
            subject,
            replace(standard.details(subject), figures=figures, findings=findings),
        ),
    )
    say(f"eval: the evidence for {run.folder} is in {write_evidence(run)}")


def _write(run: Run, subject: Subject, measured: Measured) -> None:
    try:
        write_saebench(run.saebench, subject.name, subject.dictionary, measured)
    except UserError as error:
        say(f"eval: no files for SAEBench were written for {subject.name}, because {error}")
