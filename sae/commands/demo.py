"""`sae demo`: the whole path on a small real model, and one page that shows it.

Every stage reuses what is finished and goes on where it was interrupted, so running the demo
again costs seconds, and killing it costs little.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import Any

from sae.architectures import StandardConfig
from sae.base import (
    UserError,
    check_writable,
    duration,
    require,
    say,
)
from sae.commands import analyze, eval, export, harvest, steer, train
from sae.commands.analyze import AnalyzeConfig, DialConfig
from sae.commands.eval import EvalConfig
from sae.commands.export import ExportConfig
from sae.commands.harvest import HarvestConfig
from sae.commands.steer import SteerConfig
from sae.commands.train import TrainConfig
from sae.pages.report import write_report
from sae.run import Clock, Run, keep_settings

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


# Seconds of each unit of work of a demo on two cores, and those of `product_seconds` there.
_SECONDS = {
    "tokens harvested": 6.5e-4,
    "rows trained on": 2e-5,
    "latents trained on them": 1e-8,
    "tokens run with a change": 2.75e-3,
    "rows reconstructed": 5e-5,
    "tokens analyzed": 1e-4,
    "features to choose from": 0.018,
    "vectors tried": 0.3,
    "features steered": 65.0,
    "starts": 40.0,
}
_PRODUCT_SECONDS = 0.0055


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoConfig:
    """Go the whole way with a small model: harvest, train, evaluate, analyze, steer, export.

    Dictionaries are trained for several L1 coefficients, each beside a control, the best one is
    looked at, and all of it comes together in a report.
    """

    # By default what fits five minutes on two cores; `preset=full` makes the figures of docs/.
    run: str = "runs/demo"
    """Folder of the run, for everything; the report is `{run}/report.html`."""
    harvest: HarvestConfig = field(default_factory=lambda: HarvestConfig(n_tokens=72_000))
    """Keys of `sae harvest`."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            training_tokens=250_000,
            sae=StandardConfig(d_sae=1152),
            control=["frozen_decoder"],
        )
    )
    """Keys of `sae train`."""
    l1_coefficients: list[float] = field(default_factory=lambda: [1.5, 2.2, 3.2, 4.7])
    """Weights of the L1 penalty, with a dictionary for each; all read the same batches."""
    eval: EvalConfig = field(
        default_factory=lambda: EvalConfig(n_behaviour_tokens=1_024, density_rows=32_768)
    )
    """Keys of `sae eval`."""
    analyze: AnalyzeConfig = field(
        default_factory=lambda: AnalyzeConfig(dials=DialConfig(n_features=24, n_nulls=16))
    )
    """Keys of `sae analyze`."""
    steer: SteerConfig = field(
        default_factory=lambda: SteerConfig(n_features=1, max_new_tokens=16)
    )
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


def _expected_seconds(config: DemoConfig) -> float:
    """Return about how long a demo takes on this machine.

    It is the time on the machine where `_SECONDS` were measured, times how much longer a
    product of matrices takes here.
    """
    n_tokens, dials = config.harvest.n_tokens, config.analyze.dials
    n_dictionaries = len(config.l1_coefficients) * (1 + len(config.train.control))
    rows = n_dictionaries * config.train.training_tokens
    looked_at = min(n_tokens, config.eval.density_rows) + n_tokens // 10
    amounts = {
        "tokens harvested": n_tokens,
        "rows trained on": rows,
        "latents trained on them": rows * config.train.sae.d_sae,
        "tokens run with a change": (n_dictionaries + 3) * config.eval.n_behaviour_tokens,
        "rows reconstructed": n_dictionaries * looked_at,
        "tokens analyzed": n_tokens,
        "features to choose from": config.train.sae.d_sae,
        "vectors tried": (dials.n_features or 0) + 2 * dials.n_nulls,
        "features steered": config.steer.n_features,
        "starts": 1,
    }
    seconds = sum(_SECONDS[unit] * amount for unit, amount in amounts.items())
    return seconds * train.product_seconds(config.harvest.model.device) / _PRODUCT_SECONDS


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
    clock = Clock(run.timings, config)
    if not clock.seconds:
        left = duration(_expected_seconds(config))
        say(f"demo: about {left} of work on this machine; the same command goes on if it ends")

    def done(stage: str, work: Callable[[Any], Any], asked: Any, **given: Any) -> Any:
        here = replace(asked, run=config.run, **given)
        return clock.time(stage, lambda: work(here))

    cache = done("harvest", harvest.run, config.harvest)
    grid = _grid(config)
    clock.time("train", lambda: train.run_all(grid))
    names = [one.id for trained in grid for one in (trained, *trained.controls())]
    pareto = done("eval", lambda asked: eval.compare(asked, names), config.eval)
    chosen = pareto.recommended.id
    done("analyze", analyze.run, config.analyze, dictionary=chosen)
    steering = done("steer", steer.run, config.steer, dictionary=chosen)
    exported = done("export", export.run, ExportConfig(), dictionary=chosen)
    more = {"steering": steering, "timings": clock.seconds}
    report = write_report(config.run, cache, pareto, exported, more)
    keep_settings(config, "demo", run.report_data)
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
