"""Measuring a run's dictionaries on text that they were never trained on."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sae.base import (
    UserError,
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
from sae.core.fidelity import ReconstructionStatistics, density_histogram
from sae.dictionary import Dictionary, add_reconstruction
from sae.evaluation.behaviour import Scores, behaviour
from sae.figures import SETTINGS, Figures, ShrinkingCost
from sae.models import LanguageModel, recorded_model, resolve_device
from sae.rows.origin import check_held_out, check_same_origin
from sae.rows.shuffle import RowSelection, rows_in_order, select_rows
from sae.run import RUN_CACHE, PathArtefact, Run, cache_location, make_together

_ROWS_A_BATCH = 4096
_SHRUNK_ROWS = 8_192
"""Held-out activations that a shrunk dictionary is measured on at most, evenly spread."""
_SHRUNK_TOKENS = 2_048
"""Held-out tokens that go through the whole model before and after."""
_SHRUNK_SEQUENCES = 8
"""Sequences in a forward pass."""


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
    k: int | None = None
    """Number of active latents to read one topk dictionary with; by default its own. It becomes
    a dictionary of the run, `{dictionary}-k-{k}`."""
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
        require_at_least(self, k=1, n_behaviour_tokens=1, density_rows=1, batch_size=1)
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
    cache = open_cache(config.cache_location)
    if names is None and config.k is not None:
        names = [run.load_at(config.dictionary, config.k, "eval")[0]]
    elif names is None:
        names = run.dictionary_names if config.dictionary is None else [config.dictionary]
    # Without a name the run says what is missing.
    dictionaries = dict(run.load(name) for name in names or (None,))
    for name, dictionary in dictionaries.items():
        check_same_origin(name, dictionary, cache)
        check_held_out(name, dictionary, cache)

    def is_current(name: str, dictionary: Dictionary) -> bool:
        path = run.evaluation(name)
        if not path.exists() or not is_whole(path):
            return False
        found, trained = Figures.read(path), dictionary.record.training_digest
        wanted = _digest(config, cache, dictionary.hook_names, dictionary.digest)
        same = (found.digest, found.training_digest) == (wanted, trained)
        return same and found.asked_behaviour_tokens >= config.n_behaviour_tokens

    def build(left: Sequence[PathArtefact]) -> None:
        groups: dict[tuple[str, str], dict[str, Dictionary]] = defaultdict(dict)
        for name in (one.path.stem for one in left):
            groups[dictionaries[name].hook_names][name] = dictionaries[name]
        for group in groups.values():
            for name, figures in _evaluate(config, cache, group).items():
                with sealed_path(run.evaluation(name)) as temporary:
                    write_json(temporary, figures.to_json())

    artefacts = [
        PathArtefact(run.evaluation(name), partial(is_current, name, dictionary))
        for name, dictionary in dictionaries.items()
    ]
    make_together(artefacts, build, command="eval")
    return [Figures.read(run.evaluation(name)) for name in dictionaries]


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
    model = recorded_model(cache.model, config.device) if cache.model.causal else None
    if model is not None and model.record.causal:
        n_tokens, scores = behaviour_scores(
            model, cache, on_device, config.n_behaviour_tokens, config.batch_size
        )
    else:
        say(f"eval: {cache.model.name} predicts no next token, so CE and KL are left out")
    seconds = (time.perf_counter() - began) / len(figures)
    nothing = Scores({})
    return {
        name: replace(
            found,
            values={**found.values, **scores.get(name, nothing).values},
            not_measurable=scores.get(name, nothing).not_measurable,
            n_behaviour_tokens=n_tokens,
            seconds=seconds,
        )
        for name, found in figures.items()
    }


def behaviour_scores(
    model: LanguageModel,
    cache: ActivationCache,
    dictionaries: dict[str, Dictionary],
    n_tokens: int,
    batch_size: int,
) -> tuple[int, dict[str, Scores]]:
    """Return how many held-out tokens went through the model, and each dictionary's scores.

    The dictionaries have the same hooks, and the model is the one that the cache was made with.
    Of about `n_tokens` whole sequences are taken, at least one.

    Raises:
        UserError: if the sequences are longer than what the model can read.
    """
    size, longest = cache.context_size, model.max_positions
    require(
        longest is None or size <= longest,
        f"{cache.location} has sequences of {size} tokens, and its model reads {longest} at "
        "once; give a cache of shorter ones",
    )
    hook_name, hook_name_out = next(iter(dictionaries.values())).hook_names
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
    require(
        held_out.n_rows > 0,
        f"{cache.location} holds out no activation that {name} can be measured on; harvest "
        "with data.held_out_fraction=0.1, or give another cache=...",
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
        hook_name=dictionary.hook_name,
        hook_name_out=dictionary.hook_name_out,
        digest=_digest(config, cache, dictionary.hook_names, weights),
        dictionary_digest=weights,
        training_digest=dictionary.record.training_digest,
        data=cache.text.name,
        asked_behaviour_tokens=config.n_behaviour_tokens,
        settings=_settings(dictionary),
        values={**measured, "dead_fraction": dead_fraction},
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


def measured_rows(
    dictionary: Dictionary, cache: ActivationCache, *, held_out: bool
) -> RowSelection:
    """Select the rows of a cache on which a dictionary is measured, at the hooks that it has.

    Rows that its training left out for their norm are left out here too.
    """
    return select_rows(
        cache,
        *dict.fromkeys(dictionary.hook_names),
        held_out=held_out,
        max_norm_multiple=dictionary.record.max_norm_multiple,
    )


def reconstruction(
    dictionary: Dictionary, rows: RowSelection, limit: int | None = None
) -> ReconstructionStatistics:
    """Statistics of a dictionary over `measured_rows`, at most about `limit`, evenly spread."""
    statistics = ReconstructionStatistics(dictionary.d_out, dictionary.d_sae)
    device = dictionary.W_enc.device
    for stored in _batches(rows_in_order(rows, limit)):
        sides = [side.to(device).float() for side in stored]
        add_reconstruction(statistics, dictionary, sides[0], sides[-1])
    return statistics


def _batches(pieces: Iterator[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    # Joined and split to about the rows that one product should have.
    waiting: list[tuple[Tensor, ...]] = []
    for piece in pieces:
        waiting.append(piece)
        if sum(len(sides[0]) for sides in waiting) >= _ROWS_A_BATCH:
            joined = map(torch.cat, zip(*waiting, strict=True))
            yield from zip(*(torch.split(j, _ROWS_A_BATCH) for j in joined), strict=True)
            waiting = []
    if waiting:
        yield tuple(map(torch.cat, zip(*waiting, strict=True)))


def held_out_rows(name: str, dictionary: Dictionary, location: str) -> RowSelection:
    """Select the held-out activations of the cache at `location` that a dictionary reads.

    Raises:
        UserError: if the cache is missing, of another model or hook, or holds out nothing.
    """
    cache = open_cache(location)
    check_same_origin(name, dictionary, cache)
    rows = measured_rows(dictionary, cache, held_out=True)
    require(
        rows.n_rows > 0,
        f"{location} holds no document out, so nothing made smaller can be measured; give "
        "another cache=...",
    )
    return rows


def shrinking_cost(
    before: Dictionary, after: Dictionary, rows: RowSelection, *, causal: bool
) -> ShrinkingCost:
    """Measure a dictionary before and after it was made smaller, on the same activations.

    If the model is `causal` and can be had, its cross-entropy is measured too.
    """
    device = resolve_device("auto")
    both = {"before": before.to(device), "after": after.to(device)}
    statistics = {name: reconstruction(d, rows, limit=_SHRUNK_ROWS) for name, d in both.items()}
    figures = {name: found.metrics() for name, found in statistics.items()}
    n_tokens = 0
    try:
        model = recorded_model(rows.cache.model, "auto") if causal else None
    except UserError as error:
        say(f"export: what this does to the model's CE is not measured: {error}")
        model = None
    if model is not None and model.record.causal:
        n_tokens, scores = behaviour_scores(
            model, rows.cache, both, _SHRUNK_TOKENS, _SHRUNK_SEQUENCES
        )
        for name, found in scores.items():
            figures[name] |= found.values
    return ShrinkingCost(
        n_dropped=before.d_sae - after.d_sae,
        d_sae=before.d_sae,
        n_rows=statistics["after"].n_rows,
        n_behaviour_tokens=n_tokens,
        **figures,
    )
