"""The standard suite: every measurement of a dictionary and of its controls, kept as evidence.

One measurement that cannot be made takes nothing from the others: its figures are said to be
not measurable, with the reason, and the rest is kept.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from sae.base import (
    UserError,
    digest,
    is_whole,
    plain,
    progress,
    say,
    sealed_path,
    write_json,
)
from sae.cache.layout import ActivationCache
from sae.dictionary import Dictionary
from sae.evaluation.evaluate import EvalConfig, cache_of, evaluate
from sae.evaluation.stability import reseeded
from sae.evidence import Evidence, held_out_findings
from sae.figures import Figures
from sae.findings import Finding
from sae.models import LanguageModel, recorded_model, resolve_device
from sae.run import PathArtefact, Run, make_together

Model = Callable[[], LanguageModel]
"""Loads the model of a cache when it is first asked for."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A dictionary that is measured, and what it is measured with."""

    name: str
    dictionary: Dictionary
    cache: ActivationCache
    run: Run
    device: torch.device
    model: Model


@dataclass(frozen=True, slots=True)
class Measurement:
    """One part of the suite."""

    name: str
    keys: tuple[str, ...]
    """Metrics that it gives, for saying what is missing when it fails."""
    measure: Callable[[Subject], list[Finding]]
    reads_model: bool = False
    """Whether it needs the model, so that a random one says nothing."""


class Models:
    """Models by their weights, each loaded once and only if something needs it."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._loaded: dict[str, LanguageModel] = {}

    def of(self, cache: ActivationCache) -> LanguageModel:
        """Return the model that a cache was made with."""
        key = cache.model.weight_digest
        if key not in self._loaded:
            self._loaded[key] = recorded_model(cache.model, self._device)
        return self._loaded[key]


Finished = Callable[[Subject, Figures, Sequence[Finding]], None]
"""Is told of each dictionary that was measured now, before its evidence is kept."""


def gather(
    config: EvalConfig,
    measurements: Sequence[Measurement],
    finished: Finished = lambda *_: None,
) -> list[Evidence]:
    """Measure dictionaries of a run and their controls, or reuse what is there of the same.

    It is the dictionary that is asked for, with its controls, or all of the run.
    """
    run, models = Run.at(config.run), Models(config.device)
    figures = {one.id: one for one in _with_controls(config, run)}

    def subject(name: str) -> Subject:
        # Made anew each time, so that one dictionary is in memory and not all of a run.
        return _subject(config, run, name, models)

    digests = {name: _digest(subject(name), figures[name], measurements) for name in figures}

    def is_current(name: str) -> bool:
        path = run.evidence(name)
        there = path.exists() and is_whole(path)
        return there and Evidence.read(path).digest == digests[name]

    def build(left: Sequence[PathArtefact]) -> None:
        with progress(len(left) * len(measurements), "standard suite", "measurement") as bar:
            for name in (one.path.stem for one in left):
                own = subject(name)
                begun = _begun(figures[name], own, digests[name])
                found = _measured(begun, own, measurements, lambda: bar.update(1))
                finished(own, figures[name], found.findings)
                with sealed_path(run.evidence(name)) as temporary:
                    write_json(temporary, found.to_json())

    artefacts = [PathArtefact(run.evidence(n), partial(is_current, n)) for n in figures]
    make_together(artefacts, build, command="eval")
    return [Evidence.read(run.evidence(name)) for name in figures]


def _with_controls(config: EvalConfig, run: Run) -> list[Figures]:
    """Return the figures of what is asked for; with another `k` it has no controls."""
    if config.dictionary is None or config.k is not None:
        return evaluate(config)
    return evaluate(config, [config.dictionary, *run.controls(config.dictionary).values()])


def _subject(config: EvalConfig, run: Run, name: str, models: Models) -> Subject:
    _, dictionary = run.load(name)
    cache, device = cache_of(config, dictionary), resolve_device(config.device)
    return Subject(name, dictionary.to(device), cache, run, device, partial(models.of, cache))


def _digest(subject: Subject, figures: Figures, measurements: Sequence[Measurement]) -> str:
    # Other seeds of the run have a part in stability, so they have one in this.
    found = reseeded(subject.run, subject.name, subject.dictionary)
    others = {name: other.digest for name, other in found.items()}
    names = [measurement.name for measurement in measurements]
    return digest([plain(figures.values), figures.digest, others, names])


def _begun(figures: Figures, subject: Subject, wanted: str) -> Evidence:
    return Evidence(
        id=figures.id,
        recipe=figures.training_architecture or figures.architecture,
        control=figures.control,
        digest=wanted,
        dictionary_digest=subject.dictionary.digest,
        training_digest=figures.training_digest,
        hook_name=figures.hook_name,
        data=subject.cache.text.name,
        findings=tuple(held_out_findings(figures)),
    )


def _measured(
    begun: Evidence,
    subject: Subject,
    measurements: Sequence[Measurement],
    finished: Callable[[], None],
) -> Evidence:
    findings, seconds = list(begun.findings), dict(begun.seconds)
    for measurement in measurements:
        began = time.perf_counter()
        findings += _tried(measurement, subject)
        seconds[measurement.name] = time.perf_counter() - began
        finished()
    return replace(begun, findings=tuple(findings), seconds=seconds)


def _tried(measurement: Measurement, subject: Subject) -> list[Finding]:
    """Make one measurement; if it is refused its figures have that for a reason."""
    if measurement.reads_model and subject.cache.model.random_weights:
        why = "what a model with random weights does says nothing"
    elif measurement.reads_model and not subject.cache.model.causal:
        why = f"{subject.cache.model.name} predicts no next token"
    else:
        try:
            return measurement.measure(subject)
        except UserError as error:
            why = str(error)
            say(f"eval: {measurement.name} of {subject.name} is not measured, because {why}")
    return [Finding(key=key, why_not=why) for key in measurement.keys]
