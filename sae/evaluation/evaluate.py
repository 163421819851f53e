"""Measuring a run's dictionaries on text that they were never trained on."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from sae.base import digest, progress, require, say, write_json
from sae.cache.layout import ActivationCache, open_cache
from sae.core.fidelity import density_histogram
from sae.dictionary import Dictionary
from sae.evaluation.behaviour import behaviour
from sae.evaluation.reconstruction import measured_rows, reconstruction
from sae.figures import SETTINGS, Figures
from sae.models import LanguageModel, recorded_config, recorded_model, resolve_device
from sae.rows.origin import check_held_out, check_same_origin
from sae.run import RUN_CACHE, PathArtefact, Run, cache_location, make_together


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """Measure on held-out text how well dictionaries reconstruct, and what the model loses.

    The model's loss is measured with each dictionary's reconstruction in place of the
    activations. An encoder predicts no next token, so only its reconstruction is measured.
    """

    run: str = "runs/default"
    """Folder of the run; figures go to `{run}/evals/{dictionary}.json`, the comparison of all
    dictionaries to `{run}/pareto.png`, `.csv` and `.json`."""
    cache: str = RUN_CACHE
    """Cache on whose held-out text to measure."""
    dictionary: str | None = None
    """Name of one dictionary; by default all of the run are measured."""
    n_behaviour_tokens: int = 8_192
    """Number of held-out tokens to run through the whole model with each dictionary."""
    density_rows: int = 131_072
    """Number of training activations, evenly spread, that densities and dead latents are
    counted on besides the held-out ones."""
    batch_size: int = 8
    """Number of sequences in a forward pass."""
    device: str = "auto"
    """Device to compute on: `cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU if there is
    one."""
    max_l0: float = 60.0
    """Highest L0 of the dictionary that is recommended: the most faithful one up to it."""

    def __post_init__(self) -> None:
        for name in ("n_behaviour_tokens", "density_rows", "batch_size"):
            value = getattr(self, name)
            require(value >= 1, f"{name}={value}; give 1 or more")
        require(self.max_l0 > 0, f"max_l0={self.max_l0}; give more than 0")

    @property
    def cache_location(self) -> str:
        """The cache that is read."""
        return cache_location(self.run, self.cache)


def evaluate(config: EvalConfig, names: list[str] | None = None) -> list[Figures]:
    """Measure dictionaries of a run, or reuse figures of the same dictionary and settings.

    Args:
        names: those to measure; by default the one that is asked for, or all of the run.

    Returns:
        Their figures, which are in the run's folder too.

    Raises:
        UserError: if there is none, the cache is of another model or hook, or holds text that a
            dictionary was trained on.
    """
    run = Run.at(config.run)
    cache = open_cache(config.cache_location)
    if names is None:
        asked = config.dictionary
        names = run.dictionary_names if asked is None else [asked]
    # Without a name the run says what is missing.
    wanted_names: list[str | None] = [*names] or [None]
    dictionaries = dict(run.load(name) for name in wanted_names)
    for name, dictionary in dictionaries.items():
        check_same_origin(name, dictionary, cache)
        check_held_out(name, dictionary, cache)
    settings = [cache.digest, config.density_rows]
    wanted = {
        name: digest([settings, *found.hook_names, found.digest])
        for name, found in dictionaries.items()
    }
    n_tokens = config.n_behaviour_tokens

    def is_current(name: str) -> bool:
        path = run.evaluation(name)
        if not path.exists():
            return False
        found = Figures.read(path)
        trained = dictionaries[name].record.training_digest
        same = (found.digest, found.training_digest) == (wanted[name], trained)
        return same and found.asked_behaviour_tokens >= n_tokens

    def build(left: Sequence[PathArtefact]) -> None:
        todo = {one.path.stem: dictionaries[one.path.stem] for one in left}
        for name, figures in _evaluate(config, cache, todo).items():
            whole = replace(
                figures,
                digest=wanted[name],
                asked_behaviour_tokens=n_tokens,
                data=cache.text.name,
            )
            write_json(run.evaluation(name), whole.to_json())

    artefacts = [
        PathArtefact(run.evaluation(name), partial(is_current, name)) for name in dictionaries
    ]
    make_together(artefacts, build, command="eval")
    return [Figures.read(run.evaluation(name)) for name in dictionaries]


def _evaluate(
    config: EvalConfig, cache: ActivationCache, dictionaries: dict[str, Dictionary]
) -> dict[str, Figures]:
    by_hooks: dict[tuple[str, str], dict[str, Dictionary]] = {}
    for name, dictionary in dictionaries.items():
        hooks = dictionary.hook_name, dictionary.hook_name_out
        by_hooks.setdefault(hooks, {})[name] = dictionary
    found: dict[str, Figures] = {}
    for hooks, group in by_hooks.items():
        found |= _evaluate_hooks(config, cache, hooks, group)
    return found


def _evaluate_hooks(
    config: EvalConfig,
    cache: ActivationCache,
    hooks: tuple[str, str],
    group: dict[str, Dictionary],
) -> dict[str, Figures]:
    """Figures of dictionaries that read the first of `hooks` and reconstruct the second."""
    began = time.perf_counter()
    device = resolve_device(config.device)
    on_device = {name: dictionary.to(device) for name, dictionary in group.items()}
    figures = {}
    with progress(len(group), "reconstruction", "dictionary") as bar:
        for name, dictionary in on_device.items():
            figures[name] = _reconstruction_figures(config, cache, name, dictionary)
            bar.update(1)
    record = cache.model
    if recorded_config(record, config.device).is_causal():
        model = recorded_model(record, config.device)
        n_tokens, scores = behaviour_scores(
            model, cache, hooks, on_device, config.n_behaviour_tokens, config.batch_size
        )
    else:
        say(f"eval: {record.name} predicts no next token, so CE and KL are left out")
        n_tokens, scores = 0, {name: {} for name in group}
    seconds = (time.perf_counter() - began) / len(group)
    return {
        name: replace(
            found,
            values={**found.values, **scores[name]},
            n_behaviour_tokens=n_tokens,
            seconds=seconds,
        )
        for name, found in figures.items()
    }


def behaviour_scores(
    model: LanguageModel,
    cache: ActivationCache,
    hooks: tuple[str, str],
    dictionaries: dict[str, Dictionary],
    n_tokens: int,
    batch_size: int,
) -> tuple[int, dict[str, dict[str, float]]]:
    """How many held-out tokens went through the model, and each dictionary's scores.

    Args:
        model: the one that the cache was made with.
        hooks: what the dictionaries read, and what they reconstruct.
        n_tokens: about how many are wanted; whole sequences are taken, at least one.
    """
    hook_name, hook_name_out = hooks
    held_out = torch.from_numpy(cache.tokens[cache.held_out]).long()
    tokens = held_out[: max(1, n_tokens // cache.context_size)]
    scores = behaviour(
        model,
        cache.site(hook_name_out),
        tokens,
        dictionaries,
        torch.from_numpy(cache.statistics(hook_name_out)["mean"]),
        source=cache.site(hook_name),
        batch_size=batch_size,
    )
    return tokens.numel(), scores


def _reconstruction_figures(
    config: EvalConfig, cache: ActivationCache, name: str, dictionary: Dictionary
) -> Figures:
    held_out = measured_rows(dictionary, cache, held_out=True)
    training = measured_rows(dictionary, cache, held_out=False)
    statistics = reconstruction(dictionary, held_out)
    # Rare latents need more rows than the held-out part has: whether a latent lives is
    # counted over training rows as well, everything else over held-out rows alone.
    more = reconstruction(dictionary, training, limit=config.density_rows)
    fired = statistics.fired + more.fired
    n_density_rows = statistics.n_rows + more.n_rows
    dead_fraction = float((fired == 0).double().mean())
    trained = dictionary.record.training
    return Figures(
        id=name,
        architecture=dictionary.architecture,
        training_architecture=None if trained is None else trained.architecture,
        hook_name=dictionary.hook_name,
        hook_name_out=dictionary.hook_name_out,
        dictionary_digest=dictionary.digest,
        training_digest=dictionary.record.training_digest,
        settings=_settings(dictionary),
        values={**statistics.metrics(), "dead_fraction": dead_fraction},
        n_rows=statistics.n_rows,
        n_density_rows=n_density_rows,
        density_histogram=density_histogram(fired.double() / n_density_rows),
    )


def _settings(dictionary: Dictionary) -> dict[str, float]:
    """What was asked of the training, to tell the dictionary from others."""
    asked: dict[str, Any] = {"d_sae": dictionary.d_sae}
    training = dictionary.record.training
    if training is not None:
        asked |= {
            "training_tokens": training.training_tokens,
            "seed": training.seed,
            **training.optim,
            **training.sae,
        }
    if asked.get("target_l0") is not None:
        # The training moved this weight by itself.
        asked["l0_coefficient"] = None
    return {key: asked[key] for key in SETTINGS if asked.get(key) is not None}
