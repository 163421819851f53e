"""What some dictionaries do to each row of activations by itself, before they read it.

Every row has a length of its own, and perhaps a centre: a dictionary reads
`(x - centre) / length`, and what it reconstructs of that is undone with the same two numbers.
So an activation of one adds the latent's direction times the row's length. No weights can do
it, unlike a scale of all rows alike, which is folded into them (`sae.dictionary.folding`).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

Vectors = Float[Tensor, "... d"]
OfRows = Float[Tensor, "... 1"]


@dataclass(frozen=True, slots=True)
class Normalisation(ABC):
    """From rows of activations to what a dictionary reads of them, and back."""

    name: ClassVar[str]
    """SAELens's word for it: `normalize_activations` in `cfg.json`."""
    formula: ClassVar[str]
    """What is read of a row x, for cards and docs."""
    code: ClassVar[str]
    """Lines of Python that put what is read in the place of `x`, and set what undoes it."""
    undone: ClassVar[str]
    """What follows a reconstruction in Python, and undoes it."""

    @abstractmethod
    def read(self, x: Vectors) -> Vectors:
        """Return what is read of rows."""

    @abstractmethod
    def lengths(self, x: Vectors) -> OfRows:
        """Return by what a reconstruction of each row is multiplied."""

    def centres(self, x: Vectors) -> OfRows | float:
        """Return what is added to a reconstruction of each row then."""
        return 0.0

    def undo(self, x_hat: Vectors, x: Vectors) -> Vectors:
        """Return the reconstruction of rows `x`, of one of what was read of them."""
        return x_hat * self.lengths(x) + self.centres(x)


@dataclass(frozen=True, slots=True)
class ConstantNorm(Normalisation):
    """Rows of one norm, the root of their width."""

    name: ClassVar[str] = "constant_norm_rescale"
    formula: ClassVar[str] = "x * sqrt(d_in) / |x|"
    code: ClassVar[str] = """\
length = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
x = x / length"""
    undone: ClassVar[str] = " * length"

    def read(self, x: Vectors) -> Vectors:
        return x / self.lengths(x)

    def lengths(self, x: Vectors) -> OfRows:
        # A row of zeros has no direction, and stays one of zeros.
        tiny = torch.finfo(x.dtype).tiny
        norms: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        lengths: Tensor = norms.clamp_min(tiny) / x.shape[-1] ** 0.5
        return lengths


@dataclass(frozen=True, slots=True)
class LayerNorm(Normalisation):
    """Rows less their mean, over their standard deviation (of a sample: over d - 1)."""

    name: ClassVar[str] = "layer_norm"
    formula: ClassVar[str] = "(x - mean(x)) / (std(x) + 1e-5)"
    code: ClassVar[str] = """\
centre, length = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
x = (x - centre) / (length + 1e-5)"""
    undone: ClassVar[str] = " * length + centre"

    def read(self, x: Vectors) -> Vectors:
        # What is added here is left out on the way back, by SAELens and OpenAI alike.
        return (x - self.centres(x)) / (self.lengths(x) + 1e-5)

    def lengths(self, x: Vectors) -> OfRows:
        return x.std(-1, keepdim=True)

    def centres(self, x: Vectors) -> OfRows:
        return x.mean(-1, keepdim=True)


NORMALISATIONS: dict[str, Normalisation] = {
    one.name: one for one in (ConstantNorm(), LayerNorm())
}
"""By SAELens's word for each."""
