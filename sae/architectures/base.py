"""What the trainer asks of an autoencoder, whatever its architecture."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.base.errors import require
from sae.core.scaling import InputScaling


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """What one forward pass over a batch found."""

    loss: Float[Tensor, ""]
    """To be minimised; the only one that gradients flow through."""
    x_hat: Float[Tensor, "batch d_in"]
    losses: dict[str, Tensor]
    """Named parts of the loss, detached: `losses/mse_loss`, `losses/l1_loss`, ..."""
    fired: Int[Tensor, " d_sae"]
    """In how many rows of the batch each latent was active."""


class TrainableSAE(nn.Module, ABC):
    """An autoencoder in training. Rows that it sees are centred and scaled."""

    @abstractmethod
    def step(self, x: Float[Tensor, "batch d_in"], progress: float) -> TrainingStep:
        """The loss on a batch, `progress` (0 to 1) of the way through the run."""

    @abstractmethod
    def weights(self, scaling: InputScaling) -> dict[str, Tensor]:
        """Fields of a `Dictionary` that does on raw activations what this does on scaled."""


@dataclass(frozen=True, kw_only=True)
class ArchitectureConfig(ABC):
    """Size and penalty of an autoencoder; each architecture adds its own keys."""

    d_sae: int = 4_608
    """Number of latents."""

    def __post_init__(self) -> None:
        require(
            self.d_sae > 0,
            f"sae.d_sae={self.d_sae} is impossible; a dictionary needs at least one latent",
        )

    @property
    @abstractmethod
    def architecture(self) -> str:
        """The name under which the trained dictionary is saved (SAELens's)."""

    @property
    @abstractmethod
    def short_name(self) -> str:
        """Begins the name of the dictionary's folder: architecture, width and penalty."""

    @abstractmethod
    def build(self, sample: Float[Tensor, "rows d_in"], generator: Any) -> TrainableSAE:
        """A fresh autoencoder, initialised from scaled sample rows and a torch generator."""
