"""What `sae truth` can be asked for."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from sae.architectures import ArchitectureConfig, StandardConfig
from sae.base import check_numbers, require_at_least
from sae.synthetic import WorldConfig
from sae.training.config import TrainConfig
from sae.training.optim import OptimConfig


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
    """Name of the dictionary. By default it is made of architecture, width, penalty, learning
    rate and seed."""
    world: WorldConfig = field(default_factory=WorldConfig)
    """The features that there are, and how they fire."""
    sae: ArchitectureConfig = field(default_factory=lambda: StandardConfig(d_sae=512))
    """Architecture of the dictionary."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser and its schedule."""
    training_tokens: int = 4_000_000
    """Number of rows to train on. No row is used twice."""
    train_batch_size_tokens: int = 1024
    """Number of rows in a batch."""
    seed: int = 42
    """Seed of the initial weights. The rows are the same for all seeds."""
    n_scored_rows: int = 65_536
    """Number of further rows on which the figures are measured."""
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
        """Return the folder that the dictionary is written to."""
        return self.training.dictionary_path
