"""`sae truth`: recipes trained on a world whose features are known, and what they find."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sae.architectures import ArchitectureConfig, BatchTopKConfig
from sae.base import (
    check_numbers,
    check_writable,
    damaged,
    digest,
    plain,
    require_at_least,
    say,
)
from sae.dictionary import load_dictionary
from sae.evaluation.recipes import Scored, as_lines, over_seeds
from sae.evaluation.truth import score_truth
from sae.models import resolve_device
from sae.pages.truth_picture import draw_truth
from sae.rows.known import KnownRows
from sae.run import Run, make, missing
from sae.synthetic import World, WorldConfig, open_world
from sae.training.config import TrainConfig
from sae.training.loop import Diverged
from sae.training.optim import OptimConfig
from sae.training.task import tasks_of
from sae.training.train import train_together
from sae.training.turns import in_turns

__all__ = ["Scored", "TruthConfig", "run", "run_all"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TruthConfig:
    """Train a recipe on a world whose features are known, and score what it finds.

    Give several values, of recipes and of seeds, to compare them: sae=topk,batchtopk
    seed=1,2,3. Dictionaries are kept in the run like any others, and their figures in its
    `truth` folder.
    """

    run: str = "runs/truth"
    """Folder of the run."""
    name: str | None = None
    """Name of the dictionary; by default made of architecture, width, penalty, learning rate
    and seed."""
    world: WorldConfig = field(default_factory=WorldConfig)
    """The features that there are, and how they fire."""
    sae: ArchitectureConfig = field(default_factory=lambda: BatchTopKConfig(d_sae=512, k=3))
    """Architecture of the dictionary."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser and its schedule."""
    training_tokens: int = 4_000_000
    """Number of rows to train on; no row comes twice."""
    train_batch_size_tokens: int = 1024
    """Number of rows in a batch."""
    seed: int = 42
    """Seed of the initial weights; rows are the same for all."""
    n_scored_rows: int = 65_536
    """Number of further rows that figures are measured on."""
    device: str = "auto"
    """Device to train on: `cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU if there is one."""

    def __post_init__(self) -> None:
        require_at_least(self, n_scored_rows=1)
        # What is wrong with the training is said before anything is made.
        check_numbers(self.training)

    @property
    def training(self) -> TrainConfig:
        """The training that this is."""
        return TrainConfig(
            run=self.run,
            name=self.name,
            sae=self.sae,
            optim=self.optim,
            training_tokens=self.training_tokens,
            train_batch_size_tokens=self.train_batch_size_tokens,
            seed=self.seed,
            device=self.device,
        )

    @property
    def recipe(self) -> str:
        """The name of all that differ in their seed alone."""
        return replace(self.training, seed=TrainConfig().seed).id

    @property
    def dictionary_path(self) -> Path:
        """Where the dictionary goes."""
        return self.training.dictionary_path


def run(config: TruthConfig) -> Scored:
    """Train and score one dictionary, or reuse what is there."""
    (found,) = run_all([config])
    return found


def run_all(configs: Sequence[TruthConfig]) -> list[Scored]:
    """Train and score dictionaries, those of a world side by side, and compare the recipes.

    Raises:
        Diverged: in the end, if one diverged.
    """
    for config in configs:
        resolve_device(config.device)
        check_writable(config.dictionary_path)
    scored, diverged = [], []
    for members in _by_world(configs):
        world = open_world(members[0].world)
        try:
            _train(members, world)
        except Diverged as error:
            diverged.append(str(error))
        there = [config for config in members if config.dictionary_path.exists()]
        scored += [_scored(config, world) for config in there]
    for folder in dict.fromkeys(config.run for config in configs):
        own = [one for one in scored if Run.at(folder).truth(one.id).exists()]
        _compare(Run.at(folder), own)
    if diverged:
        raise Diverged("; ".join(diverged))
    return scored


def _by_world(configs: Sequence[TruthConfig]) -> Iterator[list[TruthConfig]]:
    """Give those together that read the same batches."""
    found: dict[str, list[TruthConfig]] = {}
    for one in configs:
        key = digest([plain(one.world), one.train_batch_size_tokens, one.device])
        found.setdefault(key, []).append(one)
    yield from found.values()


def _train(configs: Sequence[TruthConfig], world: World) -> None:
    source = KnownRows(world, configs[0].train_batch_size_tokens)
    tasks = tasks_of([config.training for config in configs], source)
    for turn in in_turns(missing(tasks, "truth"), source):
        train_together(turn, source)


def _scored(config: TruthConfig, world: World) -> Scored:
    """Score a dictionary, unless that was done, on the same rows and for the same weights."""
    dictionary = load_dictionary(config.dictionary_path)
    name, place = config.training.id, Run.at(config.run).truth(config.training.id)
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

    make(place, is_current, build, command="truth")
    return Scored.read(place)


def _compare(run: Run, scored: Sequence[Scored]) -> None:
    """Say what recipes find, and draw it."""
    recipes = over_seeds(scored)
    for line in as_lines(recipes):
        say(f"truth: {line}")
    draw_truth(recipes, run.truth_picture)
    say(f"truth: {run.truth_picture} is written")
