"""`sae demo`: the whole path on a small real model, and one page that shows it.

Every stage reuses what is finished and goes on where it was interrupted, so running the demo
again costs seconds, and killing it costs little.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sae.analysis.analyze import AnalyzeConfig
from sae.architectures import StandardConfig
from sae.base import (
    UserError,
    check_writable,
    digest,
    plain,
    read_json,
    require,
    say,
    write_json,
)
from sae.commands import analyze, export, harvest, steer, sweep
from sae.evaluation.evaluate import EvalConfig, evaluate
from sae.harvesting.config import HarvestConfig
from sae.models import is_causal
from sae.pages.compare import cache_figures, say_comparison, write_comparison, write_report
from sae.pages.pareto import Pareto
from sae.publishing.plan import ExportConfig
from sae.run import Run
from sae.steering.steer import SteerConfig
from sae.training.config import TrainConfig


def _grid() -> list[float]:
    return [1.0, 1.5, 2.2, 3.2, 4.7]


# What fits twenty minutes on two cores.
def _harvest() -> HarvestConfig:
    return HarvestConfig(n_tokens=448_000)


def _train() -> TrainConfig:
    return TrainConfig(training_tokens=1_600_000, sae=StandardConfig(d_sae=2304))


# Keys of stages that have no effect in a demo, and the key that has.
_SET_BY_THE_DEMO = {
    **{f"{stage}.run": "run" for stage in ("harvest", "train", "eval", "analyze", "steer")},
    "train.sae.l1_coefficient": "l1_coefficients",
    "train.sweep.evaluate": "eval.n_behaviour_tokens",
    "train.sweep.n_behaviour_tokens": "eval.n_behaviour_tokens",
    "train.sweep.max_l0": "eval.max_l0",
    "eval.dictionary": "l1_coefficients",
    "analyze.dictionary": "eval.max_l0",
    "steer.dictionary": "eval.max_l0",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoConfig:
    """Go the whole way with a small model: harvest, train, evaluate, analyze, steer, export.

    Dictionaries are trained for several L1 coefficients, the best one is looked at, and all of
    it comes together in a report.
    """

    run: str = "runs/demo"
    """Folder of the run, for everything; the report is `{run}/report.html`."""
    harvest: HarvestConfig = field(default_factory=_harvest)
    """Keys of `sae harvest`."""
    train: TrainConfig = field(default_factory=_train)
    """Keys of `sae train`."""
    l1_coefficients: list[float] = field(default_factory=_grid)
    """Weights of the L1 penalty, with a dictionary for each; all read the same batches."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Keys of `sae eval`."""
    analyze: AnalyzeConfig = field(default_factory=AnalyzeConfig)
    """Keys of `sae analyze`."""
    steer: SteerConfig = field(default_factory=SteerConfig)
    """Keys of `sae steer`."""

    def __post_init__(self) -> None:
        require(bool(self.l1_coefficients), "l1_coefficients is empty; give at least one")
        for value in self.l1_coefficients:
            require(
                value >= 0,
                f"l1_coefficients={value} is negative; give 0 or more (2 to 10 are usual)",
            )
        for key, instead in _SET_BY_THE_DEMO.items():
            part, name = key.rsplit(".", 1)
            config = attrgetter(part)(self)
            default = {known.name: known.default for known in fields(config)}
            given = getattr(config, name, None)
            require(
                name not in default or given == default[name],
                f"{key}={given} has no effect in a demo; give {instead}=...",
            )

    def idle_keys(self) -> dict[str, str | None]:
        """Return the keys that the demo sets itself."""
        return dict.fromkeys(_SET_BY_THE_DEMO)


class _Clock:
    """Seconds that each stage worked, added up over interruptions but not over reuse."""

    def __init__(self, path: Path, config: DemoConfig) -> None:
        self.path = path
        wanted = digest(plain(config))
        found = read_json(path) if path.exists() else {}
        self.state: dict[str, Any] = {"digest": wanted, "seconds": {}, "done": []}
        if found.get("digest") == wanted:
            self.state = found
        self.seconds: dict[str, float] = self.state["seconds"]
        self.done: list[str] = self.state["done"]

    def time(self, stage: str, work: Callable[[], Any]) -> Any:
        """Do `work`; its time counts until it has once come to its end."""
        began = time.perf_counter()
        try:
            result = work()
        finally:
            if stage not in self.done:
                spent = time.perf_counter() - began
                self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
                write_json(self.path, self.state)
        if stage not in self.done:
            self.done.append(stage)
            write_json(self.path, self.state)
        return result


def run(config: DemoConfig) -> dict[str, Any]:
    """Run what is not done yet; returns the figures of `report.json`."""
    run = Run.at(config.run)
    check_writable(run.folder)
    model = config.harvest.model
    require(
        is_causal(model),
        f"model={model.name} is an encoder and predicts no next token, so there is nothing to "
        "steer; run sae harvest, train, eval and analyze instead",
    )
    clock = _Clock(run.timings, config)
    cache = clock.time("harvest", lambda: harvest.run(replace(config.harvest, run=config.run)))
    names = clock.time("train", lambda: _sweep(config))
    pareto = clock.time("eval", lambda: _compared(config, names))
    chosen = pareto.recommended.id
    atlas = clock.time(
        "analyze",
        lambda: analyze.run(replace(config.analyze, run=config.run, dictionary=chosen)),
    )
    steering = clock.time(
        "steer", lambda: steer.run(replace(config.steer, run=config.run, dictionary=chosen))
    )
    exported = clock.time(
        "export", lambda: export.run(ExportConfig(run=config.run, dictionary=chosen))
    )
    report = {
        "run": config.run,
        "model_name": cache.model.hub_id,
        **cache_figures(run, cache),
        **pareto.for_page(),
        "atlas": quote(f"{atlas.folder.relative_to(run.folder).as_posix()}/index.html"),
        "steering": steering,
        "timings": clock.seconds,
    }
    write_report(run, report, names, atlas, exported)
    say_comparison(pareto)
    spent = sum(clock.seconds.values()) / 60
    say(f"{report['cache']['n_tokens']:,} tokens, {spent:.1f} minutes of work")
    return report


def _sweep(config: DemoConfig) -> list[str]:
    """Train one dictionary for each coefficient, all from the same seed and batches."""
    if not isinstance(config.train.sae, StandardConfig):
        raise UserError("the demo sweeps l1_coefficient; train.sae must be standard")
    # Compared later, when all of the demo's figures are made.
    later = replace(config.train.sweep, evaluate=False)
    configs = [
        replace(
            config.train,
            run=config.run,
            sae=replace(config.train.sae, l1_coefficient=coefficient),
            sweep=later,
        )
        for coefficient in config.l1_coefficients
    ]
    sweep.run(configs)
    return [one.id for one in configs]


def _compared(config: DemoConfig, names: list[str]) -> Pareto:
    """Measure the sweep, and recommend one of it."""
    evaluate(replace(config.eval, run=config.run))
    return write_comparison(Run.at(config.run), config.eval.max_l0, names, page=False)
