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

from sae.architectures import StandardConfig
from sae.base import (
    UserError,
    check_writable,
    digest,
    plain,
    read_object,
    require,
    say,
    write_json,
)
from sae.commands import analyze, eval, export, harvest, steer, train
from sae.commands.analyze import AnalyzeConfig, DialConfig
from sae.commands.eval import EvalConfig
from sae.commands.export import ExportConfig
from sae.commands.harvest import HarvestConfig
from sae.commands.steer import SteerConfig
from sae.commands.train import TrainConfig
from sae.pages.report import write_report
from sae.run import Run

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

    Dictionaries are trained for several L1 coefficients, each beside a control, the best one is
    looked at, and all of it comes together in a report.
    """

    # By default what fits twenty minutes on two cores.
    run: str = "runs/demo"
    """Folder of the run, for everything; the report is `{run}/report.html`."""
    harvest: HarvestConfig = field(default_factory=lambda: HarvestConfig(n_tokens=448_000))
    """Keys of `sae harvest`."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            training_tokens=1_600_000,
            sae=StandardConfig(d_sae=2304),
            control=["frozen_decoder"],
        )
    )
    """Keys of `sae train`."""
    l1_coefficients: list[float] = field(default_factory=lambda: [1.0, 1.5, 2.2, 3.2, 4.7])
    """Weights of the L1 penalty, with a dictionary for each; all read the same batches."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Keys of `sae eval`."""
    analyze: AnalyzeConfig = field(
        default_factory=lambda: AnalyzeConfig(dials=DialConfig(n_features=128))
    )
    """Keys of `sae analyze`."""
    steer: SteerConfig = field(default_factory=lambda: SteerConfig(n_features=3))
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
        fresh: dict[str, Any] = {"digest": digest(plain(config)), "seconds": {}, "done": []}
        self.state = fresh
        if path.exists():
            found = read_object(path, "remove it; only the times are forgotten")
            if found.values.get("digest") == fresh["digest"]:
                times, stages = found.part("seconds"), found.get("done", list)
                seconds = {stage: times.get(stage, float) for stage in times.values}
                self.state = fresh | {"seconds": seconds, "done": stages}
        self.seconds: dict[str, float] = self.state["seconds"]

    def time(self, stage: str, work: Callable[[], Any]) -> Any:
        """Do `work`; its time counts until it has once come to its end."""
        if stage in self.state["done"]:
            return work()
        began = time.perf_counter()
        try:
            result = work()
            self.state["done"].append(stage)
        finally:
            spent = time.perf_counter() - began
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
            write_json(self.path, self.state)
        return result


def run(config: DemoConfig) -> dict[str, Any]:
    """Run what is not done yet; returns the figures of `report.json`."""
    run = Run.at(config.run)
    check_writable(run.folder)
    model = config.harvest.model
    require(
        model.is_causal(),
        f"model={model.name} is an encoder and predicts no next token, so there is nothing to "
        "steer; run sae harvest, train, eval and analyze instead",
    )
    clock = _Clock(run.timings, config)

    def done(stage: str, work: Callable[[Any], Any], asked: Any, **given: Any) -> Any:
        here = replace(asked, run=config.run, **given)
        return clock.time(stage, lambda: work(here))

    cache = done("harvest", harvest.run, config.harvest)
    grid = _grid(config)
    clock.time("train", lambda: train.run_all(grid))
    names = [one.id for trained in grid for one in (trained, *trained.controls())]
    pareto = done("eval", lambda asked: eval.compare(asked, names), config.eval)
    chosen = pareto.recommended.id
    atlas = done("analyze", analyze.run, config.analyze, dictionary=chosen)
    steering = done("steer", steer.run, config.steer, dictionary=chosen)
    exported = done("export", export.run, ExportConfig(), dictionary=chosen)
    more = {"steering": steering, "timings": clock.seconds}
    report = write_report(config.run, names, cache, pareto, atlas, exported, more)
    spent = sum(clock.seconds.values()) / 60
    say(f"{report['cache']['n_tokens']:,} tokens, {spent:.1f} minutes of work")
    return report


def _grid(config: DemoConfig) -> list[TrainConfig]:
    """Return a training for each coefficient, all from the same seed and batches."""
    if not isinstance(config.train.sae, StandardConfig):
        raise UserError("the demo sweeps l1_coefficient; train.sae must be standard")
    # Compared later, when all of the demo's figures are made.
    later = replace(
        config.train, run=config.run, sweep=replace(config.train.sweep, evaluate=False)
    )
    return [
        replace(later, sae=replace(config.train.sae, l1_coefficient=coefficient))
        for coefficient in config.l1_coefficients
    ]
