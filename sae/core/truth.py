"""How well latents find features that are known: as directions, and as detectors.

The figures over latents are SynthSAEBench's (Chanin and Garriga-Alonso 2026, arXiv 2602.14687,
as SAELens 6.54 computes them in `sae_lens.synthetic.evals`): each latent is compared with the
true feature whose direction is nearest to its own, whether or not another latent is too.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.core.matching import Directions, cosines

PerLatent = Float[Tensor, " latent"]
RECOVERED_FROM = 0.9
"""A true feature counts as recovered where its match has at least this cosine with it."""


def nearest_truth(latents: Directions, truth: Directions) -> Int[Tensor, " latent"]:
    """Return, for each latent, the true feature of the largest absolute cosine."""
    return cosines(latents, truth).abs().argmax(1)


def uniqueness(nearest: Int[Tensor, " latent"]) -> float:
    """Return how many features are nearest to some latent, over the number of latents."""
    return len(set(nearest.tolist())) / len(nearest)


class Detectors:
    """Each latent as a detector of one true feature, counted over rows."""

    def __init__(self, of: Int[Tensor, " latent"]) -> None:
        self._of = of
        zeros = torch.zeros(len(of), dtype=torch.float64)
        self._both, self._fired, self._true = zeros, zeros.clone(), zeros.clone()

    def add(
        self, fires: Bool[Tensor, "row latent"], is_true: Bool[Tensor, "row feature"]
    ) -> None:
        """Count in rows: which latents fire, and which features."""
        wanted = is_true[:, self._of]
        self._both += (fires & wanted).sum(0)
        self._fired += fires.sum(0)
        self._true += wanted.sum(0)

    @property
    def precision(self) -> PerLatent:
        """Return the share of the rows where a latent fires in which its feature fires too."""
        return _share(self._both, self._fired)

    @property
    def recall(self) -> PerLatent:
        """Return the share of the rows where its feature fires in which a latent fires too."""
        return _share(self._both, self._true)

    @property
    def f1(self) -> PerLatent:
        """The harmonic mean of both: 2 TP / (2 TP + FP + FN)."""
        return _share(2 * self._both, self._fired + self._true)


def _share(part: PerLatent, whole: PerLatent) -> PerLatent:
    """Return part / whole, and 0 where there is no whole: a dead latent detects nothing."""
    return part / whole.clamp_min(1)
