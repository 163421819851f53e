"""`sae truth`: recipes trained on a world whose features are known, and what they find."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from sae.base import UserError, check_writable, damaged, digest, plain, say
from sae.evaluation.recipes import Scored, as_lines, over_seeds
from sae.evaluation.truth import score_truth
from sae.pages.truth_picture import draw_truth
from sae.rows.known import KnownRows
from sae.run import Run, keep_settings, make
from sae.synthetic import World, open_world
from sae.training.task import tasks_of
from sae.training.truth import TruthConfig
from sae.training.turns import train_in_turns

__all__ = ["Scored", "TruthConfig", "run", "run_all"]


def run(config: TruthConfig) -> Scored:
    """Train and score one dictionary, or reuse what is there."""
    (found,) = run_all([config])
    return found


def run_all(configs: Sequence[TruthConfig]) -> list[Scored]:
    """Train and score dictionaries, those of a world side by side, and compare the recipes.

    Raises:
        UserError: in the end, if one diverged.
    """
    for config in configs:
        check_writable(config.dictionary_path)
    scored, diverged = [], []
    for members in _by_world(configs):
        world = open_world(members[0].world)
        source = KnownRows(world, members[0].train_batch_size_tokens)
        tasks = tasks_of([config.training for config in members], source)
        diverged += train_in_turns(tasks, source, "truth")[1]
        there = [config for config in members if config.dictionary_path.exists()]
        scored += [_scored(config, world) for config in there]
    for folder in dict.fromkeys(config.run for config in configs):
        own = [one for one in scored if Run.at(folder).truth(one.id).exists()]
        _compare(Run.at(folder), own)
    if diverged:
        raise UserError("; ".join(map(str, diverged)))
    return scored


def _by_world(configs: Sequence[TruthConfig]) -> Iterator[list[TruthConfig]]:
    """Give those together that read the same batches."""
    found: dict[str, list[TruthConfig]] = {}
    for one in configs:
        key = digest([plain(one.world), one.train_batch_size_tokens, one.device])
        found.setdefault(key, []).append(one)
    yield from found.values()


def _scored(config: TruthConfig, world: World) -> Scored:
    """Score a dictionary, unless that was done, on the same rows and for the same weights."""
    run = Run.at(config.run)
    name, dictionary = run.load(config.training.id)
    place = run.truth(name)
    about = [dictionary.digest, plain(config.world), config.n_scored_rows]
    wanted = digest(about)

    def is_current() -> bool:
        return place.is_file() and not damaged(place) and Scored.read(place).digest == wanted

    def build(temporary: Path) -> None:
        Scored(
            id=name,
            recipe=config.recipe,
            seed=config.seed,
            digest=wanted,
            world=plain(config.world),
            findings=score_truth(dictionary, world, config.n_scored_rows),
        ).write(temporary)

    made = make(place, is_current, build, command="truth")
    if made:
        keep_settings(config, "truth", place)
    return Scored.read(place)


def _compare(run: Run, scored: Sequence[Scored]) -> None:
    """Say what recipes find, and draw it."""
    recipes = over_seeds(scored)
    for line in as_lines(recipes):
        say(f"truth: {line}")
    draw_truth(recipes, run.truth_picture)
    say(f"truth: {run.truth_picture} is written")
