"""Measuring a run's dictionaries on text that they were never trained on."""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sae.base import (
    digest,
    is_whole,
    progress,
    require,
    require_at_least,
    say,
    sealed_path,
    write_json,
)
from sae.cache.layout import ActivationCache, open_cache
from sae.core.fidelity import density_histogram
from sae.dictionary import Dictionary
from sae.evaluation.behaviour import Scores
from sae.evaluation.held_out import (
    behaviour_scores,
    known_ends,
    measured_rows,
    reconstruction,
)
from sae.figures import SETTINGS, Figures
from sae.models import recorded_model, resolve_device
from sae.rows.origin import check_held_out, check_same_origin
from sae.run import (
    RANDOM_MODEL_CACHE,
    RUN_CACHE,
    PathArtefact,
    Run,
    cache_location,
    make_together,
)

SUITES = ("held_out", "standard")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """Measure on held-out text how well dictionaries reconstruct, and what the model loses.

    The model's loss is measured with each dictionary's reconstruction in place of the
    activations. An encoder predicts no next token, so only its reconstruction is measured.
    """

    run: str = "runs/default"
    """Folder of the run. Figures go to `{run}/evals/{dictionary}.json`, and the comparison of
    all dictionaries goes to `{run}/pareto.png`, `.csv` and `.json`."""
    cache: str = RUN_CACHE
    """Cache whose held-out text is used for measuring."""
    dictionary: str | None = None
    """Name of one dictionary. By default all dictionaries of the run are measured."""
    k: int | None = None
    """Number of active latents with which to read one TopK dictionary, by default its own. The
    result is a further dictionary of the run, named `{dictionary}-k-{k}`."""
    n_behaviour_tokens: int = 8_192
    """Number of held-out tokens to run through the whole model with each dictionary."""
    density_rows: int = 131_072
    """Number of training activations, spread evenly over the cache, on which densities and dead
    latents are counted in addition to the held-out ones."""
    batch_size: int = 8
    """Number of sequences in a forward pass."""
    device: str = "auto"
    """Device to compute on: `cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU if there is
    one."""
    suite: str = "held_out"
    """What to measure. `held_out` measures how well activations of held-out text are
    reconstructed. `standard` adds description length, stability over seeds, absorption and
    more, beside controls."""
    max_l0: float = 60.0
    """Highest L0 that the recommended dictionary may have. The most faithful dictionary among
    those is recommended."""

    def __post_init__(self) -> None:
        require_at_least(self, k=1, n_behaviour_tokens=1, density_rows=1, batch_size=1)
        require(
            self.suite in SUITES,
            f"suite={self.suite} is unknown; choose {' or '.join(SUITES)}",
        )
        require(self.max_l0 > 0, f"max_l0={self.max_l0}; give more than 0")

    @property
    def cache_location(self) -> str:
        """The cache that is read."""
        return cache_location(self.run, self.cache)


def evaluate(config: EvalConfig, names: list[str] | None = None) -> list[Figures]:
    """Measure dictionaries of a run, or reuse figures of the same dictionary and settings.

    These are `names`, or else the one that is asked for, or all of the run. Their figures are
    in the run's folder too.

    Raises:
        UserError: if there is none, the cache is of another model or hook, or holds text that a
            dictionary was trained on.
    """
    run = Run.at(config.run)
    if names is None and config.k is not None:
        names = [run.load_at(config.dictionary, config.k, "eval")[0]]
    elif names is None:
        names = run.dictionary_names if config.dictionary is None else [config.dictionary]
    # Without a name the run says what is missing.
    dictionaries = dict(run.load(name) for name in names or (None,))
    caches = {name: cache_of(config, dictionary) for name, dictionary in dictionaries.items()}
    for name, dictionary in dictionaries.items():
        check_same_origin(name, dictionary, caches[name])
        check_held_out(name, dictionary, caches[name])

    def is_current(name: str, dictionary: Dictionary) -> bool:
        path = run.evaluation(name)
        if not path.exists() or not is_whole(path):
            return False
        found, trained = Figures.read(path), dictionary.record.training_digest
        wanted = _digest(config, caches[name], dictionary.hook_names, dictionary.digest)
        same = (found.digest, found.training_digest) == (wanted, trained)
        # Those of earlier versions have no intervals.
        enough = found.asked_behaviour_tokens >= config.n_behaviour_tokens
        return same and enough and bool(found.intervals)

    def build(left: Sequence[PathArtefact]) -> None:
        groups: dict[tuple[str, ...], dict[str, Dictionary]] = defaultdict(dict)
        for name in (one.path.stem for one in left):
            alike = (caches[name].location, *dictionaries[name].hook_names)
            groups[alike][name] = dictionaries[name]
        for group in groups.values():
            cache = caches[next(iter(group))]
            for name, figures in _evaluate(config, cache, group).items():
                with sealed_path(run.evaluation(name)) as temporary:
                    write_json(temporary, figures.to_json())

    artefacts = [
        PathArtefact(run.evaluation(name), partial(is_current, name, dictionary))
        for name, dictionary in dictionaries.items()
    ]
    make_together(artefacts, build, command="eval")
    return [Figures.read(run.evaluation(name)) for name in dictionaries]


def cache_of(config: EvalConfig, dictionary: Dictionary) -> ActivationCache:
    """Open the cache that a dictionary is measured on; a control may have one of its own."""
    of_random_model = dictionary.record.control == "random_model"
    place = cache_location(config.run, RANDOM_MODEL_CACHE) if of_random_model else None
    return open_cache(place or config.cache_location)


def _digest(
    config: EvalConfig, cache: ActivationCache, hook_names: tuple[str, str], weights: str
) -> str:
    return digest([[cache.digest, config.density_rows], *hook_names, weights])


def _evaluate(
    config: EvalConfig, cache: ActivationCache, dictionaries: dict[str, Dictionary]
) -> dict[str, Figures]:
    """Measure dictionaries that read one hook and reconstruct one."""
    began = time.perf_counter()
    device = resolve_device(config.device)
    on_device = {name: dictionary.to(device) for name, dictionary in dictionaries.items()}
    figures = {}
    with progress(len(on_device), "reconstruction", "dictionary") as bar:
        for name, dictionary in on_device.items():
            figures[name] = _reconstruction_figures(config, cache, name, dictionary)
            bar.update(1)
    n_tokens, scores = 0, dict[str, Scores]()
    # What a model that knows nothing loses is no loss.
    reads = cache.model.causal and not cache.model.random_weights
    model = recorded_model(cache.model, config.device) if reads else None
    if model is not None and model.record.causal:
        n_tokens, scores = behaviour_scores(
            model, cache, on_device, config.n_behaviour_tokens, config.batch_size
        )
    else:
        why = "has random weights" if cache.model.random_weights else "predicts no next token"
        say(f"eval: {cache.model.name} {why}, so CE and KL are left out")
    seconds = (time.perf_counter() - began) / len(figures)
    nothing = Scores({})
    return {
        name: replace(
            found,
            values={**found.values, **scores.get(name, nothing).values},
            intervals={**found.intervals, **known_ends(scores.get(name, nothing).intervals)},
            not_measurable=scores.get(name, nothing).not_measurable,
            n_behaviour_tokens=n_tokens,
            seconds=seconds,
        )
        for name, found in figures.items()
    }


def _reconstruction_figures(
    config: EvalConfig, cache: ActivationCache, name: str, dictionary: Dictionary
) -> Figures:
    held_out = measured_rows(dictionary, cache, held_out=True)
    training = measured_rows(dictionary, cache, held_out=False)
    require(
        held_out.n_rows > 0,
        f"{cache.location} has no held-out activation on which {name} can be measured; "
        "harvest with data.held_out_fraction=0.1, or give another cache=...",
    )
    statistics = reconstruction(dictionary, held_out)
    measured = statistics.metrics()
    require(
        "explained_variance" in measured,
        f"the {held_out.n_rows:,} held-out activations of {cache.location} are all the same, "
        "so there is no variance to explain; give another cache=...",
    )
    # Rare latents need more rows than the held-out part has: whether a latent lives is
    # counted over training rows as well, everything else over held-out rows alone.
    more = reconstruction(dictionary, training, limit=config.density_rows)
    fired = statistics.fired + more.fired
    n_density_rows = statistics.n_rows + more.n_rows
    dead_fraction = float((fired == 0).double().mean())
    trained, weights = dictionary.record.training, dictionary.digest
    return Figures(
        id=name,
        architecture=dictionary.architecture,
        training_architecture=None if trained is None else trained.architecture,
        control=dictionary.record.control,
        hook_name=dictionary.hook_name,
        hook_name_out=dictionary.hook_name_out,
        digest=_digest(config, cache, dictionary.hook_names, weights),
        dictionary_digest=weights,
        training_digest=dictionary.record.training_digest,
        data=cache.text.name,
        asked_behaviour_tokens=config.n_behaviour_tokens,
        settings=_settings(dictionary),
        values={**measured, "dead_fraction": dead_fraction},
        intervals=known_ends(statistics.intervals()),
        n_rows=statistics.n_rows,
        n_density_rows=n_density_rows,
        density_histogram=density_histogram(fired.double() / n_density_rows),
    )


def _settings(dictionary: Dictionary) -> dict[str, float]:
    asked: dict[str, Any] = {"d_sae": dictionary.d_sae}
    training = dictionary.record.training
    if training is not None:
        asked |= {
            "training_tokens": training.training_tokens,
            "seed": training.seed,
            **training.optim,
            **training.sae,
        }
    # The k that it is read with may be another than it was trained with.
    asked |= dictionary.activation.numbers
    if asked.get("target_l0") is not None:
        # The training moved this weight by itself.
        asked["l0_coefficient"] = None
    return {key: asked[key] for key in SETTINGS if asked.get(key) is not None}
