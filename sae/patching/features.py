"""Patching what a dictionary sees: its features, the error that it leaves, or both.

At the place that a dictionary writes, activations are what it reconstructs and an error. What
is put in is one of them from the other run, and the other stays: features alone, the error
alone, or both, which is the activation patch. The error is often large, and is shown for that.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionary import Dictionary
from sae.models import Site, locate
from sae.models.resume import first_block
from sae.patching.cells import Cell
from sae.patching.exact import Target
from sae.patching.states import Places, States

PARTS = ("features", "error", "features+error")


@dataclass(frozen=True, slots=True)
class PlacedDictionary:
    """A dictionary in its places of a model."""

    name: str
    dictionary: Dictionary
    read: Site
    written: Site
    layer: int
    """Block that the place written is in."""

    @classmethod
    def of(cls, name: str, dictionary: Dictionary, places: Places) -> "PlacedDictionary":
        """Find the places of a dictionary.

        Raises:
            UserError: if it is of another model.
        """
        places.model.record.check_dictionary(name, dictionary.record.model)
        module = places.model.module
        read, written = (
            locate(module, port.place) for port in (dictionary.reads[0], dictionary.writes[0])
        )
        block = first_block(module, written)
        # What a block returns is the input of the next one.
        layer = block - 1 if block and written.side == "output" else block
        return cls(name, dictionary.to(places.model.device), read, written, layer)

    @property
    def sites(self) -> tuple[Site, Site]:
        """Where it reads and where it writes."""
        return self.read, self.written

    def seen(self, states: States) -> "Seen":
        """Return what the dictionary makes of a run."""
        x, y = (states.at[site.hook_name] for site in self.sites)
        with torch.no_grad():
            codes = self.dictionary.encode(x)
            rebuilt = self.dictionary.reconstruct(x, codes)
        return Seen(codes, rebuilt, y)

    def target(self, part: str, base: "Seen", source: "Seen") -> Target:
        """Return the patch of a part: the place, and activations without and with it."""
        delta = {
            "features": source.rebuilt - base.rebuilt,
            "error": source.error - base.error,
            "features+error": source.x - base.x,
        }[part]
        return Target(self.written, base.x, base.x + delta)

    def feature_target(self, feature: int, base: "Seen", source: "Seen") -> Target:
        """Return the patch of a single feature, at all positions."""
        return Target(self.written, base.x, base.x + self._delta(feature, base, source))

    def _delta(
        self, feature: int, base: "Seen", source: "Seen"
    ) -> Float[Tensor, "prompt position d"]:
        change = (source.codes - base.codes)[..., feature, None]
        delta: Tensor = change * self.dictionary.W_dec[feature].to(change)
        by = self.dictionary.writes[0].normalisation
        return delta if by is None else delta * by.lengths(base.x)

    def feature_shares(
        self, base: "Seen", source: "Seen", gradient: Float[Tensor, "prompt position d"]
    ) -> Float[Tensor, "prompt feature"]:
        """Return what gradients say of each feature's patch, all positions together."""
        by = self.dictionary.writes[0].normalisation
        gradient = gradient if by is None else gradient * by.lengths(base.x)
        slopes = gradient @ self.dictionary.W_dec.to(gradient).t()
        found: Tensor = ((source.codes - base.codes) * slopes).sum(1)
        return found


@dataclass(frozen=True, slots=True)
class Seen:
    """A run as a dictionary sees it."""

    codes: Float[Tensor, "prompt position d_sae"]
    rebuilt: Float[Tensor, "prompt position d"]
    x: Float[Tensor, "prompt position d"]
    """The activations at the place that is written."""

    @property
    def error(self) -> Float[Tensor, "prompt position d"]:
        """What the reconstruction leaves."""
        return self.x - self.rebuilt


def part_cells(layer: int, n_positions: int) -> list[Cell]:
    """Return the cells of features, error and both together, at each position."""
    return [
        Cell(part, layer, position=position)
        for part in PARTS
        for position in range(n_positions)
    ]
