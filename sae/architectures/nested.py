"""Autoencoders that reconstruct in nested steps: Matryoshka, hierarchical and ordered."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.architectures.base import Rows, Targets
from sae.architectures.topk import BatchTopKConfig, BatchTopKSAE, TopKConfig, TopKSAE
from sae.base import require
from sae.core.scaling import InputScaling
from sae.core.select import Active
from sae.core.sparse import Levels, Reconstruction, inverse, reconstruct_on
from sae.dictionary import Dictionary

# What each level adds, as shares of all latents (dictionary_learning's and SAEBench's).
LEVEL_SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)


class MatryoshkaSAE(BatchTopKSAE):
    """Matryoshka BatchTopK autoencoder: nested dictionaries in one (arXiv 2503.17547).

    One BatchTopK selection over all latents; the loss is the mean over levels of
    `‖x − x̂_g‖²`, where `x̂_g` decodes the active latents of the first `m_g` only. So early
    latents have to be general, and later ones may be special without being absorbed. All
    levels come from one decode by prefix sums, and their gradients by suffix sums.

    With `detach_inner` a level before the last counts what earlier ones decode to as given:
    `‖x − sg(x̂_{g−1}) − (x̂_g − x̂_{g−1})‖²`, so its error teaches its own latents alone, and
    the last level's error teaches all. With `sort_by_frequency` latents belong to levels by how
    often they fired lately, the most frequent to the first, and are saved in that order. Both
    are of the recipe that leads SynthSAEBench (LISTA-Matryoshka, March 2026), whose code adds
    up the levels' errors where here their mean is taken.
    """

    config: "MatryoshkaConfig"

    def prepare(self, sample: Rows) -> None:
        super().prepare(sample)
        if self.config.sort_by_frequency:
            self.frequency: Tensor
            self.register_buffer("frequency", torch.zeros_like(self.b_enc.detach()))
        widths = self.config.level_widths
        self.level_ends: Tensor
        self.level_weights: Tensor
        self.register_buffer("level_ends", torch.tensor(widths), persistent=False)
        shares = sample.new_full((len(widths),), 1 / len(widths))
        self.register_buffer("level_weights", shares, persistent=False)
        self._workspace: Tensor | None = None

    def observe(self, active: Active) -> None:
        super().observe(active)
        if self.config.sort_by_frequency and len(active.values):
            rates = active.support.counts().to(self.frequency.dtype) / active.support.shape[0]
            self.frequency.lerp_(rates, self.weight_of_batch)

    def by_frequency(self) -> Int[Tensor, " d_sae"]:
        """Return the latents, the most frequent first."""
        return self.frequency.argsort(descending=True, stable=True)

    def reconstruct(
        self, active: Active, values: Float[Tensor, " nnz"], target: Targets
    ) -> Reconstruction:
        shape = (len(target), len(self.level_weights), target.shape[1])
        if self._workspace is None or self._workspace.shape != shape:
            self._workspace = target.new_empty(shape)
        places, config = active.support.columns, self.config
        if config.sort_by_frequency:
            places = inverse(self.by_frequency())[places]
        levels = Levels(
            torch.bucketize(places, self.level_ends, right=True),
            self.level_weights,
            ascending=not config.sort_by_frequency,
            detached=config.detach_inner,
            workspace=self._workspace,
        )
        return reconstruct_on(active.support, values, self.W_dec, target, levels)

    def dictionary(self, scaling: InputScaling, output: InputScaling) -> Dictionary:
        found = super().dictionary(scaling, output)
        return found.of_latents(self.by_frequency()) if self.config.sort_by_frequency else found


@dataclass(frozen=True, kw_only=True)
class MatryoshkaConfig(BatchTopKConfig):
    """Nested BatchTopK autoencoder, saved as a JumpReLU (SAELens's `matryoshka_batchtopk`)."""

    architecture = "matryoshka_batchtopk"
    autoencoder = MatryoshkaSAE

    matryoshka_widths: list[int] | None = None
    """Rising numbers of latents in the inner levels, by default 1/32, 3/32, 7/32 and 15/32 of
    all latents."""
    detach_inner: bool = False
    """Let the error of an inner level train only the latents that this level adds."""
    sort_by_frequency: bool = False
    """Keep the latents that fire most often in the first levels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        widths = [0, *self.level_widths]
        require(
            all(a < b for a, b in pairwise(widths)),
            f"sae.matryoshka_widths={self.matryoshka_widths} is impossible; give rising "
            f"widths, above 0 and below sae.d_sae={self.d_sae}",
        )

    @property
    def level_widths(self) -> list[int]:
        """Return the number of latents of each level, where the last level has all of them."""
        if self.matryoshka_widths is not None:
            return [*self.matryoshka_widths, self.d_sae]
        ends = [int(sum(LEVEL_SHARES[: i + 1]) * self.d_sae) for i in range(len(LEVEL_SHARES))]
        # Tiny dictionaries cannot have them all.
        return sorted({end for end in ends if end} | {self.d_sae})


class HierarchicalTopKSAE(TopKSAE):
    """TopK autoencoder for every k up to its own (HierarchicalTopK, arXiv 2505.24473).

    Loss: the mean over j in `ks` of `‖x − x̂_j‖²`, where `x̂_j` decodes the j largest
    activations of a row, and TopK's auxiliary loss. By default these are all numbers up to k:
    powers of two alone cost half the time and lose at k itself (docs/log.md).
    """

    config: "HierarchicalTopKConfig"

    def reconstruct(
        self, active: Active, values: Float[Tensor, " nnz"], target: Targets
    ) -> Reconstruction:
        support = active.support
        falling = torch.sort(active.values, descending=True, stable=True).indices
        order = falling[torch.sort(support.rows()[falling], stable=True).indices]
        ends = torch.tensor(self.config.levels, device=target.device)
        levels = Levels(
            torch.bucketize(support.ranks()[inverse(order)], ends, right=True),
            target.new_full((len(ends),), 1 / len(ends)),
            ascending=False,
        )
        return reconstruct_on(support, values, self.W_dec, target, levels)


@dataclass(frozen=True, kw_only=True)
class HierarchicalTopKConfig(TopKConfig):
    """TopK autoencoder that can be read with any smaller k, saved as a TopK."""

    architecture = "hierarchical_topk"
    autoencoder = HierarchicalTopKSAE

    ks: list[int] | None = None
    """Rising numbers of active latents below `k` at which the dictionary is to reconstruct well
    too. By default these are all numbers below `k`. Fewer of them cost less time and memory,
    because each needs as much as the batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            all(a < b for a, b in pairwise([0, *self.levels])),
            f"sae.ks={self.ks} is impossible; give rising numbers, above 0 and below "
            f"sae.k={self.k}",
        )
        require(
            self.initial_k is None,
            f"sae.initial_k={self.initial_k} has no effect here, because every k up to "
            "sae.k is trained at once; leave it out",
        )

    @property
    def levels(self) -> list[int]:
        """The numbers of active latents, the last one `k`."""
        if self.ks is not None:
            return [*self.ks, self.k]
        return list(range(1, self.k + 1))


class OrderedTopKSAE(TopKSAE):
    """TopK autoencoder whose latents have an order (Ordered SAE, arXiv 2512.02194).

    Loss: the mean over all prefixes, m = 1 to d_sae, of `‖x − x̂_m‖²`, where `x̂_m` decodes the
    active latents among the first m, and TopK's auxiliary loss. No prefix is sampled: between
    two active latents of a row `x̂_m` does not change, so k + 1 errors, weighed by how many
    prefixes share them, give the mean exactly. That all prefixes weigh alike is our choice.
    """

    config: "OrderedTopKConfig"

    def reconstruct(
        self, active: Active, values: Float[Tensor, " nnz"], target: Targets
    ) -> Reconstruction:
        support = active.support
        level = support.ranks() + 1
        # Where x̂_m changes: at no prefix, at each active latent, and never after the last.
        changes = target.new_full((len(target), self.config.k + 2), self.d_sae)
        changes[:, 0] = 0
        changes[support.rows(), level] = support.columns.to(target.dtype)
        levels = Levels(level, changes.diff(dim=1) / self.d_sae)
        return reconstruct_on(support, values, self.W_dec, target, levels)


@dataclass(frozen=True, kw_only=True)
class OrderedTopKConfig(TopKConfig):
    """TopK autoencoder of which every prefix is a dictionary, saved as a TopK."""

    architecture = "ordered_topk"
    autoencoder = OrderedTopKSAE
