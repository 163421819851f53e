"""BatchTopK autoencoder: the k · batch largest latents of a batch (arXiv 2412.06410).

Rows may use more or fewer latents as they need. A batch is no unit of use, so the trained
dictionary is a JumpReLU whose one threshold is the running mean of each batch's least active
value; the auxiliary loss is TopK's.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from sae.architectures.base import TrainableSAE, same
from sae.architectures.topk import TopKConfig, TopKSAE
from sae.base import require
from sae.core.scaling import InputScaling
from sae.core.select import Active, BatchTopK, Selection
from sae.dictionary import Activation, Dictionary, JumpReLU

# Short enough to follow the last tenth of a run of a few thousand steps (dictionary_learning
# takes 0.999, SAELens 0.99).
THRESHOLD_DECAY = 0.99


class BatchTopKSAE(TopKSAE):
    """A TopK autoencoder that chooses over the whole batch, and remembers the threshold."""

    def prepare(self, sample: Float[Tensor, "rows d_in"]) -> None:
        self.threshold: Tensor
        self.n_batches: Tensor
        self.register_buffer("threshold", sample.new_zeros(()))
        self.register_buffer("n_batches", sample.new_zeros(()))

    def selection(self) -> Selection:
        return BatchTopK(self.config.k)

    def observe(self, active: Active) -> None:
        if not len(active.values):
            return
        # The plain mean of the first batches, an exponential one later.
        self.n_batches += 1
        weight = (1 / self.n_batches).clamp_min(1 - THRESHOLD_DECAY)
        self.threshold.lerp_(active.values.amin(), weight)

    def trained_activation(
        self, gains: Float[Tensor, " d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> Activation:
        return JumpReLU((self.threshold * gains).float())

    def take_activation(
        self, dictionary: Dictionary, gains: Float[Tensor, " d_sae"], scaling: InputScaling
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

    architecture: ClassVar[str] = "batchtopk"
    saved_as: ClassVar[type[Activation]] = JumpReLU
    autoencoder: ClassVar[type[TrainableSAE]] = BatchTopKSAE
