"""Probing from the configuration to tables: what is looked at, task by task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from sae.base import UserError, progress, say
from sae.dictionary import Dictionary
from sae.models import LanguageModel, load_skeleton
from sae.models.hooks import measured
from sae.probing.config import ProbeConfig
from sae.probing.fit import N_PERMUTED, Record
from sae.probing.readings import dictionary_site, random_control, readings_of, wanted_sites
from sae.probing.study import Found, Study, probe_task
from sae.probing.tasks import Task, read_task
from sae.run import Run

STATEMENT = (
    "Probes on a dictionary's features do not beat tuned logistic regression on raw "
    "activations on average (Kantamneni et al. 2025, arXiv 2502.16681)."
)
"""What every table of probes has to be read with."""

Named = tuple[str, Dictionary]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A task that could not be probed."""

    task: str
    why: str


@dataclass(frozen=True, slots=True)
class Probed:
    """What probing has found."""

    summary: Mapping[str, object]
    records: Sequence[Record]
    directions: Mapping[str, Float[Tensor, " d"]]
    """Unit directions of raw probes towards the second label, by `TASK|HOOK POOL`."""


def check_before_loading(config: ProbeConfig, dictionary: Named | None) -> None:
    """Refuse hooks that the model has not got, and a dictionary of others, without weights."""
    skeleton = load_skeleton(config.model)
    sites = wanted_sites(skeleton, config)
    if dictionary is not None:
        dictionary_site(skeleton, *dictionary, sites)


def read_tasks(config: ProbeConfig, names: Sequence[str]) -> tuple[list[Task], list[LeftOut]]:
    """Return the tasks, and of several those that cannot be read.

    Raises:
        UserError: if none is left, or the only one is none.
    """
    tasks, left_out = list[Task](), list[LeftOut]()
    for name in names:
        _tried(lambda one: tasks.append(read_task(one, config)), name, name, left_out)
    _require_some(tasks, left_out)
    return tasks, left_out


def probe(
    config: ProbeConfig,
    tasks: Sequence[Task],
    model: LanguageModel,
    dictionary: Named | None,
    left_out: Sequence[LeftOut] = (),
) -> Probed:
    """Probe all tasks; those that the model cannot read are left out, and told.

    Raises:
        UserError: if no task is left.
    """
    sites = measured(model.module, wanted_sites(model.module, config))
    run, left, found = Run.at(config.run), [*left_out], list[Found]()
    at = control = own = None
    if dictionary is not None:
        at, own = dictionary_site(model.module, *dictionary, sites), dictionary[1]
        tokens = tasks[0].tokens(model, config.max_tokens)
        control = random_control(own, model, at, tokens.texts, config.seed)
    readings = readings_of(sites, at, own, control, model.device)
    study = Study(config, run, model, sites, readings, control)
    with progress(len(tasks), "probe", "task") as bar:
        for task in tasks:
            _tried(lambda one: found.append(probe_task(study, one)), task, task.name, left)
            bar.update(1)
    _require_some(found, left)
    directions = {
        f"{one.task.name}|{key}": value
        for one in found
        for key, value in one.directions.items()
    }
    records = [record for one in found for record in one.records]
    return Probed(_summary(study, found, left, dictionary), records, directions)


def _tried(what: Callable[[T], object], given: T, name: str, left_out: list[LeftOut]) -> None:
    """Do something for a task, or note in a sentence why it cannot be done."""
    try:
        what(given)
    except UserError as error:
        left_out.append(LeftOut(name, str(error)))


def _require_some(there: Sequence[object], left_out: Sequence[LeftOut]) -> None:
    """Say which tasks are left out, or refuse where none is left."""
    if not there:
        raise UserError(*dict.fromkeys(one.why for one in left_out))
    for one in left_out:
        say(f"probe: {one.task} is left out: {one.why}")


def _summary(
    study: Study, found: Sequence[Found], left_out: Sequence[LeftOut], dictionary: Named | None
) -> dict[str, object]:
    record, control = study.model.record, study.control
    about = None
    if dictionary is not None and control is not None:
        about = {
            "name": dictionary[0],
            "hook_name": dictionary[1].hook_name,
            "d_sae": dictionary[1].d_sae,
            "l0": control.l0,
            "control_k": control.dictionary.activation.numbers["k"],
        }
    return {
        "name": study.config.name,
        "model": record.hub_id,
        "model_name": record.name,
        "weight_digest": record.weight_digest,
        "causal": record.causal,
        "hooks": [site.hook_name for site in study.sites],
        "n_permuted": N_PERMUTED,
        "statement": STATEMENT,
        "dictionary": about,
        "tasks": [_told(one) for one in found],
        "left_out": [{"task": one.task, "why": one.why} for one in left_out],
    }


def _told(one: Found) -> dict[str, object]:
    task = one.task
    return {
        "name": task.name,
        "labels": list(task.texts.classes),
        "n_train": task.n_train,
        "n_test": task.n_test,
        "n_elsewhere": len(task.texts) - task.n_train - task.n_test,
        "pools": list(task.pools),
        "n_cut": one.n_cut,
        "n_tokens": one.n_tokens,
        "read_seconds": one.read_seconds,
        "fit_seconds": one.fit_seconds,
        "causal_seconds": one.causal_seconds,
        "lengths": one.lengths,
        "learning_curves": one.curves,
        "words": task.texts.words is not None,
    }
