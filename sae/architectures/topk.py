"""Autoencoders whose largest latents are active: TopK and BatchTopK."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae.architectures.base import (
    ArchitectureConfig,
    Latents,
    PerLatent,
    Rows,
    Silent,
    Targets,
    TrainableSAE,
    TrainingStep,
    same,
)
from sae.base import require
from sae.core import select
from sae.core.scaling import InputScaling
from sae.core.select import Active, BatchTopK, Selection, TopKAmong
from sae.core.sparse import Reconstruction, encode_on, reconstruct_on
from sae.dictionary import Activation, Dictionary, JumpReLU, TopK

# The share of a run after which a falling k has arrived, as targets of L0 do.
K_REACHED = 0.6


class TopKSAE(TrainableSAE):
    """TopK autoencoder: the k largest latents of each row are active (arXiv 2406.04093).

    Loss: `‖x − x̂‖² + α d ‖e − ê‖² / ‖e‖²`, the second term (AuxK) letting dead latents predict
    what is left, `e = x − x̂` (detached): `ê` decodes the `k_aux` largest pre-activations among
    dead latents, whatever their sign, and gradients reach their encoder rows too. `d` is the
    width, the mean of `‖x‖²` after scaling, so α weighs both terms as OpenAI's normalised
    losses are weighed. Rows of the decoder have norm one: an activation is the length it adds.
    """

    unit_norm_decoder = True
    config: "TopKConfig"

    def activation(self, pre_acts: Latents) -> Latents:
        top = pre_acts.topk(self.config.k, sorted=False)
        return torch.zeros_like(pre_acts).scatter_(1, top.indices, top.values.relu())

    def selection(self, progress: float) -> Selection:
        """Return what chooses the active entries of a batch, `progress` through the run."""
        return select.TopK(self.config.k_at(progress))

    def observe(self, active: Active) -> None:
        """Take account of what a batch activated."""
        return

    def reconstruct(
        self, active: Active, values: Float[Tensor, " nnz"], target: Targets
    ) -> Reconstruction:
        """How far the active latents are from the target."""
        return reconstruct_on(active.support, values, self.W_dec, target)

    def step(self, x: Rows, y: Targets, progress: float, dead: Silent) -> TrainingStep:
        encoder = self.encoder()
        active, candidates = self.select(x, encoder, self.selection(progress))
        self.observe(active)
        values = encode_on(active.support, active.values, x, encoder, self.b_enc)
        main = self.reconstruct(active, values, self.target(x, y))
        loss = main.loss
        losses: dict[str, Tensor | float] = {"details/candidates": candidates}
        among = torch.where(dead)[0] if self.config.aux_loss_coefficient else dead[:0]
        if len(among):
            most = self.config.k_aux or max(1, x.shape[1] // 2)
            idle, _ = self.select(x, encoder, TopKAmong(among, most))
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

    def trained_activation(self, gains: PerLatent, b_enc: PerLatent) -> Activation:
        return TopK(self.config.k)

    def take_activation(
        self, dictionary: Dictionary, gains: PerLatent, scaling: InputScaling
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
            f"{norms.max() / norms.min():.3g} times and ranks latents without these norms, "
            f"but sae={self.config.architecture} ranks latents by the length that they add; "
            "give a dictionary with equal norms",
        )


@dataclass(frozen=True, kw_only=True)
class TopKConfig(ArchitectureConfig):
    """TopK autoencoder with an auxiliary loss for dead latents (SAELens's `topk`)."""

    architecture = "topk"
    saved_as: ClassVar[type[Activation]] = TopK
    autoencoder = TopKSAE

    k: int = 32
    """Number of active latents for each input. 16 to 64 are usual (arXiv 2406.04093)."""
    initial_k: int | None = None
    """Number of active latents at the start. It changes linearly to `k` over the first 0.6 of
    the training. By default it is `k` throughout."""
    aux_loss_coefficient: float = 1 / 32
    """Weight of the auxiliary loss, relative to the weight of the reconstruction error (arXiv
    2406.04093, A.2)."""
    k_aux: int | None = None
    """Number of dead latents that are trained to predict the remaining error. By default it is
    half the width of the input (arXiv 2406.04093)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            1 <= self.k <= self.d_sae,
            f"sae.k={self.k} is impossible; give 1 up to sae.d_sae={self.d_sae}",
        )
        require(
            self.initial_k is None or 1 <= self.initial_k <= self.d_sae,
            f"sae.initial_k={self.initial_k} is impossible; give 1 up to "
            f"sae.d_sae={self.d_sae}",
        )
        require(
            self.k_aux is None or self.k_aux >= 1,
            f"sae.k_aux={self.k_aux} is impossible; give 1 or more",
        )
        self.check_not_negative("aux_loss_coefficient", "1/32 is usual")

    def k_at(self, progress: float) -> int:
        """Return how many latents are active, `progress` (0 to 1) of the way through."""
        left = max(0.0, 1 - progress / K_REACHED)
        return (
            self.k
            if self.initial_k is None
            else round(self.k + left * (self.initial_k - self.k))
        )

    def idle_keys(self) -> dict[str, str | None]:
        """Return the number of a loss that has no weight."""
        word = f"aux_loss_coefficient={TopKConfig.aux_loss_coefficient:g}"
        return {} if self.aux_loss_coefficient else {"k_aux": word}

    @property
    def short_name(self) -> str:
        return f"{self.architecture}-{self.d_sae}-k-{self.k}"


# Short enough to follow the last tenth of a run of a few thousand steps (dictionary_learning
# takes 0.999, SAELens 0.99).
THRESHOLD_DECAY = 0.99


class BatchTopKSAE(TopKSAE):
    """BatchTopK autoencoder: the k · batch largest latents of a batch (arXiv 2412.06410).

    Rows may use more or fewer latents as they need. A batch is no unit of use, so the trained
    dictionary is a JumpReLU whose one threshold is the running mean of each batch's least
    active value; the auxiliary loss is TopK's.
    """

    def prepare(self, sample: Rows) -> None:
        self.threshold: Tensor
        self.n_batches: Tensor
        self.register_buffer("threshold", sample.new_zeros(()))
        self.register_buffer("n_batches", sample.new_zeros(()))

    def selection(self, progress: float) -> Selection:
        return BatchTopK(self.config.k_at(progress))

    def observe(self, active: Active) -> None:
        if not len(active.values):
            return
        self.n_batches += 1
        self.threshold.lerp_(active.values.amin(), self.weight_of_batch)

    @property
    def weight_of_batch(self) -> Float[Tensor, ""]:
        """The last batch's in the plain mean of the first batches, an exponential one later."""
        return (1 / self.n_batches).clamp_min(1 - THRESHOLD_DECAY)

    def trained_activation(self, gains: PerLatent, b_enc: PerLatent) -> Activation:
        return JumpReLU((self.threshold * gains).float())

    def take_activation(
        self, dictionary: Dictionary, gains: PerLatent, scaling: InputScaling
    ) -> None:
        assert isinstance(dictionary.activation, JumpReLU)
        thresholds = (dictionary.activation.threshold.clamp_min(0) * gains)[gains > 0]
        require(
            same(thresholds),
            f"the dictionary of init_from has thresholds from {thresholds.min():.3g} to "
            f"{thresholds.max():.3g}, but sae={self.config.architecture} has one for all "
            "latents; give sae=jumprelu",
        )
        self.threshold.copy_(thresholds.mean())
        # It counts for as many batches as the exponential mean remembers.
        self.n_batches.fill_(1 / (1 - THRESHOLD_DECAY))


@dataclass(frozen=True, kw_only=True)
class BatchTopKConfig(TopKConfig):
    """BatchTopK autoencoder, saved as a JumpReLU (SAELens's `batchtopk`)."""

    architecture = "batchtopk"
    saved_as = JumpReLU
    autoencoder = BatchTopKSAE
