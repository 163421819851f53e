"""TopK autoencoder: the k largest latents of each row are active (arXiv 2406.04093).

Loss: `‖x − x̂‖² + α d ‖e − ê‖² / ‖e‖²`, the second term (AuxK) letting dead latents predict
what is left, `e = x − x̂` (detached): `ê` decodes the `k_aux` largest pre-activations among dead
latents, whatever their sign, and gradients reach their encoder rows too. `d` is the width, the
mean of `‖x‖²` after scaling, so α weighs both terms as OpenAI's normalised losses are weighed.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.architectures.base import ArchitectureConfig, TrainableSAE, TrainingStep, same
from sae.base import require
from sae.core import select
from sae.core.scaling import InputScaling
from sae.core.select import Active, Selection, TopKAmong
from sae.core.sparse import Reconstruction, encode_on, reconstruct_on
from sae.dictionary import Activation, Dictionary, TopK


class TopKSAE(TrainableSAE):
    """Rows of the decoder have norm one, so an activation is the length that it adds."""

    unit_norm_decoder = True
    config: "TopKConfig"

    def activation(
        self, pre_acts: Float[Tensor, "batch d_sae"]
    ) -> Float[Tensor, "batch d_sae"]:
        top = pre_acts.topk(self.config.k, sorted=False)
        return torch.zeros_like(pre_acts).scatter_(1, top.indices, top.values.relu())

    def selection(self) -> Selection:
        """Return what chooses the active entries of a batch."""
        return select.TopK(self.config.k)

    def observe(self, active: Active) -> None:
        """Called with what each batch activated."""
        return

    def reconstruct(
        self,
        active: Active,
        values: Float[Tensor, " nnz"],
        target: Float[Tensor, "batch d_out"],
    ) -> Reconstruction:
        """How far the active latents are from the target."""
        return reconstruct_on(active.support, values, self.W_dec, target)

    def step(
        self,
        x: Float[Tensor, "batch d_in"],
        y: Float[Tensor, "batch d_out"],
        progress: float,
        dead: Bool[Tensor, " d_sae"],
    ) -> TrainingStep:
        encoder = self.encoder()
        selections = [self.selection()]
        among = torch.where(dead)[0] if self.config.aux_loss_coefficient else dead[:0]
        if len(among):
            selections.append(TopKAmong(among, self.config.k_aux or max(1, x.shape[1] // 2)))
        active, *auxiliary = self.select(x, encoder, *selections)
        self.observe(active)
        values = encode_on(active.support, active.values, x, encoder, self.b_enc)
        main = self.reconstruct(active, values, self.target(x, y))
        loss = main.loss
        losses: dict[str, Tensor | float] = {}
        for idle in auxiliary:
            aux = self.config.aux_loss_coefficient * self._auxiliary(x, encoder, idle, main)
            losses["losses/auxiliary_reconstruction_loss"] = aux.detach()
            loss = loss + aux
        return TrainingStep(loss, main.mse[-1], losses, active.support.counts())

    def _auxiliary(
        self, x: Tensor, encoder: Tensor, idle: Active, main: Reconstruction
    ) -> Tensor:
        values = encode_on(idle.support, idle.values, x, encoder, self.b_enc)
        left = reconstruct_on(idle.support, values, self.W_dec, -main.error)
        share: Tensor = left.loss / main.mse[-1].clamp_min(1e-12)
        return share * main.error.shape[1]

    def trained_activation(
        self, gains: Float[Tensor, " d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> Activation:
        return TopK(self.config.k)

    def take_activation(
        self, dictionary: Dictionary, gains: Float[Tensor, " d_sae"], scaling: InputScaling
    ) -> None:
        """Refuse decoder rows that differ in norm; with one norm the start is exact.

        Here the k largest are those that add most, and a dictionary ranks without norms. Only
        latents that neither fire nor add are in nobody's way.
        """
        takes_part = (dictionary.W_enc != 0).any(0) | (dictionary.b_enc > 0) | (gains > 0)
        norms = gains[takes_part]
        require(
            same(norms),
            "the dictionary of init_from has decoder rows whose norms differ up to "
            f"{norms.max() / norms.min():.3g} times and ranks latents without them, but "
            f"sae={self.config.architecture} ranks by what they add; give one with equal norms",
        )


@dataclass(frozen=True, kw_only=True)
class TopKConfig(ArchitectureConfig):
    """TopK autoencoder with an auxiliary loss for dead latents (SAELens's `topk`)."""

    architecture: ClassVar[str] = "topk"
    saved_as: ClassVar[type[Activation]] = TopK
    autoencoder: ClassVar[type[TrainableSAE]] = TopKSAE

    k: int = 32
    """Number of active latents for each input; 16 to 64 are usual (arXiv 2406.04093)."""
    aux_loss_coefficient: float = 1 / 32
    """Weight of the auxiliary loss, relative to that of the error (arXiv 2406.04093, A.2)."""
    k_aux: int | None = None
    """Number of dead latents that predict the error; by default half the width of the input
    (arXiv 2406.04093)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            1 <= self.k <= self.d_sae,
            f"sae.k={self.k} is impossible; give 1 up to sae.d_sae={self.d_sae}",
        )
        require(
            self.k_aux is None or self.k_aux >= 1,
            f"sae.k_aux={self.k_aux} is impossible; give 1 or more",
        )
        self.check_not_negative("aux_loss_coefficient", "1/32 is usual")

    @property
    def short_name(self) -> str:
        return f"{self.architecture}-{self.d_sae}-k-{self.k}"
