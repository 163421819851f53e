"""Cells: the single places whose effects are measured, and what is put into each."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Effects = Float[Tensor, "prompt cell"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One place that is patched: of a kind, in a block, at a position or of a head."""

    site: str
    """`residual`, `attention`, `mlp`, `head`, `features`, `error`, `features+error`, `feature`
    or `path`."""
    layer: int | None = None
    position: int | None = None
    """None where all positions are patched together."""
    head: int | None = None
    feature: int | None = None
    receiver: str | None = None
    """What alone hears of the patch, in path patching."""

    def into(
        self,
        base: Float[Tensor, "position d"],
        source: Float[Tensor, "position d"],
        n_heads: int,
    ) -> Float[Tensor, "position d"]:
        """Return the activations of a run with those of another in this cell's place."""
        if self.head is not None:
            width = base.shape[1] // n_heads
            own = slice(self.head * width, (self.head + 1) * width)
            patched = base.clone()
            patched[:, own] = source[:, own]
            return patched
        if self.position is None:
            return source
        patched = base.clone()
        patched[self.position] = source[self.position]
        return patched

    def share(
        self, shares: Float[Tensor, "prompt position d"], n_heads: int
    ) -> Float[Tensor, " prompt"]:
        """Return the sum of what belongs to this cell, for each prompt."""
        own: Tensor = shares
        if self.head is not None:
            width = shares.shape[2] // n_heads
            own = shares[:, :, self.head * width : (self.head + 1) * width]
        elif self.position is not None:
            own = shares[:, self.position, None]
        return own.sum((1, 2))


def normalised(
    patched: Effects,
    base: Float[Tensor, " prompt"],
    source: Float[Tensor, " prompt"],
) -> Effects:
    """Return how far a patch moved the metric from a run's towards the other's.

    It is (m_patched − m_base) / (m_source − m_base): 0 where nothing changes, 1 where the other
    prompt's difference of logits is reached. So it is for denoising, where the corrupt run is
    patched with clean activations, and for noising, where it is the other way round.
    """
    found: Tensor = (patched - base[:, None]) / (source - base)[:, None]
    return found


def nothing(n_prompts: int, cells: "list[Cell]") -> Effects:
    """Return effects that are not measured yet."""
    return torch.full((n_prompts, len(cells)), float("nan"), dtype=torch.float64)
