"""All probes of one task: at each hook, of each pool, of each reading, and what they cause."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from jaxtyping import Float
from torch import Tensor

from sae.classifiers import LinearProbe, one_thread
from sae.models import LanguageModel, Site
from sae.probing.attending import attention_probes
from sae.probing.causal import MOST_TEXTS, Direction, Later, Trial, direction_of
from sae.probing.config import ATTENTION, ProbeConfig
from sae.probing.fit import (
    CHANNELS,
    MEANS,
    Material,
    Record,
    learning_curve,
    raw_probes,
    sparse_probes,
)
from sae.probing.readings import FEATURES, RAW, Control
from sae.probing.tasks import Task, control_task
from sae.rows.pooled import PooledRows, Reading, TokenizedTexts, keep_pooled_rows
from sae.run import Run

_ROWS_TOGETHER = 2048
"""As many places are fitted at once as have so many rows: more take memory and no less time."""


@dataclass(frozen=True, slots=True)
class Study:
    """What all tasks are probed with."""

    config: ProbeConfig
    run: Run
    model: LanguageModel
    sites: Sequence[Site]
    readings: Sequence[Reading]
    control: Control | None = None


@dataclass(slots=True)
class Found:
    """What was found of one task."""

    task: Task
    n_cut: int
    records: list[Record] = field(default_factory=list)
    directions: dict[str, Float[Tensor, " d"]] = field(default_factory=dict)
    """Direction of the probe of raw activations, of any length, by `HOOK POOL`."""
    lengths: dict[str, float] = field(default_factory=dict)
    """How much of a direction of length one lies between both classes' means."""
    curves: list[Record] = field(default_factory=list)
    read_seconds: float = 0.0
    n_tokens: int = 0
    fit_seconds: float = 0.0
    causal_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Raw:
    """A probe of raw activations."""

    site: Site
    pool: str
    probe: LinearProbe
    record: Record
    direction: Direction


def probe_task(study: Study, task: Task) -> Found:
    """Read the texts of a task, fit all probes and find out what the best one causes.

    Raises:
        UserError: if the model cannot read its texts.
    """
    config = study.config
    tokens = task.tokens(study.model, config.max_tokens)
    pools = [pool for pool in task.pools if pool != ATTENTION]
    found = Found(task, tokens.n_cut)
    raws: list[_Raw] = []
    if pools:
        rows = keep_pooled_rows(study.run, study.model, tokens, study.readings, pools)
        found.read_seconds, found.n_tokens = rows.seconds, rows.n_tokens
        began = perf_counter()
        with one_thread():
            raws = [*_all_probes(study, task, rows, pools, found)]
        found.fit_seconds = perf_counter() - began
    if ATTENTION in task.pools:
        began = perf_counter()
        found.records += attention_probes(study.model, study.sites, task, tokens, config.seed)
        found.fit_seconds += perf_counter() - began
    _choose(found.records)
    if raws:
        # Of linear probes: what attention reads has no one direction.
        best = max(raws, key=lambda one: _worth(one.record))
        with one_thread():
            _learn(study, task, rows, best, found)
        if config.causal and study.model.record.causal:
            began = perf_counter()
            _cause(study, task, tokens, raws, best)
            found.causal_seconds = perf_counter() - began
    return found


@dataclass(frozen=True, slots=True)
class _Place:
    """A reading and a pool of it."""

    study: Study
    reading: Reading
    pool: str

    @property
    def hook(self) -> str:
        return self.reading.site.hook_name

    @property
    def is_raw(self) -> bool:
        return self.reading.name == RAW

    @property
    def told(self) -> Record:
        """What records say of it."""
        layer = [site.hook_name for site in self.study.sites].index(self.hook)
        return {"hook_name": self.hook, "layer": layer, "pool": self.pool}


def _all_probes(
    study: Study, task: Task, rows: PooledRows, pools: Sequence[str], found: Found
) -> Iterator[_Raw]:
    """Yield the probes of raw activations; records of all go to what was found."""
    control = control_task(task, study.config.seed)
    places = [_Place(study, one, pool) for one in study.readings for pool in pools]
    featured = {one.reading.site.hook_name for one in places if one.reading.name == FEATURES}

    def material(place: _Place) -> Material:
        own = rows.of(place.reading.name, place.hook, place.pool)
        return Material(task, own, study.config.seed, control, per_column=place.is_raw)

    def kept(place: _Place, records: Iterable[Record]) -> list[Record]:
        own = [{"task": task.name, **place.told} | one for one in records]
        found.records += own
        return own

    raws = [place for place in places if place.is_raw]
    together = max(1, _ROWS_TOGETHER // len(task.texts))
    for first in range(0, len(raws), together):
        some = raws[first : first + together]
        materials = [material(place) for place in some]
        for place, own, (records, probe) in zip(
            some, materials, raw_probes(materials), strict=True
        ):
            record = kept(place, records)[0]
            direction = direction_of(probe, *own.train)
            found.directions[f"{place.hook} {place.pool}"] = direction.unit
            found.lengths[f"{place.hook} {place.pool}"] = direction.length
            if place.hook in featured:
                few = [k for k in study.config.ks if k is not None]
                kept(place, sparse_probes(own, CHANNELS, few))
            yield _Raw(place.reading.site, place.pool, probe, record, direction)
    for place in places:
        if not place.is_raw:
            name = place.reading.name
            kept(place, sparse_probes(material(place), name, study.config.ks))


def _choose(records: Sequence[Record]) -> None:
    """Mark the pool that validation chose at each hook, and the hook, for all kinds of inputs.

    Test scores have no say. A difference of means has no validation: it follows the probe of
    all raw activations.
    """
    best: dict[tuple[object, ...], Record] = {}
    for record in records:
        if record["inputs"] != MEANS:
            kind = record["inputs"], record["k"]
            for key in ((*kind, record["hook_name"]), kind):
                if key not in best or _worth(record) > _worth(best[key]):
                    best[key] = record
    for record in records:
        kind = RAW if record["inputs"] == MEANS else record["inputs"], record["k"]
        at_hook, of_all = best[*kind, record["hook_name"]], best[kind]
        record["chosen"] = record["pool"] == at_hook["pool"]
        place = of_all["hook_name"], of_all["pool"]
        record["best"] = place == (record["hook_name"], record["pool"])


def _worth(record: Record) -> float:
    """Return the AUC on validation texts; below all where nothing was validated."""
    value = record.get("validation_auc")
    return value if isinstance(value, float) else -1.0


def _learn(study: Study, task: Task, rows: PooledRows, best: _Raw, found: Found) -> None:
    """Fit the best hook's probes to fewer texts."""
    hook, sizes = best.site.hook_name, study.config.learning_curve
    there = [one.name for one in study.readings if one.site.hook_name == hook]
    for name in there if sizes else ():
        own = rows.of(name, hook, best.pool)
        material = Material(task, own, study.config.seed, per_column=name == RAW)
        place: Record = {"task": task.name, "hook_name": hook, "pool": best.pool}
        found.curves += (place | one for one in learning_curve(material, name, sizes))


def _cause(
    study: Study,
    task: Task,
    tokens: TokenizedTexts,
    raws: Sequence[_Raw],
    best: _Raw,
) -> None:
    """Measure what the best probe's direction causes, and put it into its record."""
    last = raws[-1].site
    behind = [one for one in raws if one.site == last and one.pool == best.pool]
    later = None
    named = all(site.hook_name.startswith("blocks.") for site in (last, best.site))
    if behind and last != best.site and named:
        later = Later(last, behind[0].probe, best.pool)
    some = slice(task.n_train, task.n_train + min(MOST_TEXTS, task.n_test))
    labels = task.texts.labels[some]
    if labels.all() or not labels.any():
        return
    trial = Trial(study.model, best.site, tokens.texts[some], labels, later)
    best.record.update(trial.effects(best.direction, study.config.seed))
