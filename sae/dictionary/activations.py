"""What makes the latents of a dictionary active: each activation owns its tensors."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.base import UserError, require
from sae.core import select
from sae.core.select import Above, Active
from sae.core.sparse import support_of

Inputs = Float[Tensor, "rows d_in"]
Encoder = Float[Tensor, "d_sae d_in"]
"""`W_enc` transposed."""
Latents = Float[Tensor, "... d_sae"]
"""A number for each latent, in each row of activations."""
PerLatent = Float[Tensor, " d_sae"]


@dataclass(frozen=True, slots=True)
class Activation(ABC):
    """From pre-activations to feature activations.

    Fields of a subclass are tensors (d_sae,), which are saved with the weights under their own
    names, and whole numbers, which are saved in `cfg.json`. Here `products` is `x @ W_enc` and
    `pre` is `products + b_enc`.
    """

    name: ClassVar[str]
    """SAELens's word for it, in `cfg.json`."""
    formula: ClassVar[str]
    """The feature activations in words of the weights, for cards and docs."""
    code: ClassVar[str]
    """Lines of Python that set `acts`, from `x`, `pre` and the file's tensors `w`.

    Whole numbers among the fields stand in braces, such as `{k}`.
    """
    names_in_file: ClassVar[Mapping[str, str]] = {}
    """Names of tensors in SAELens's file that differ from ours, by ours."""
    in_saelens: ClassVar[bool] = True
    """Whether SAELens has a class for autoencoders with this activation."""
    transcodes_in_saelens: ClassVar[bool] = False
    """Whether SAELens has a class for transcoders with this activation."""
    each_alone: ClassVar[bool] = True
    """Whether what a latent's activation is does not depend on the other latents."""
    never: ClassVar[tuple[str, ...]] = ()
    """Tensors whose largest entries stand for "never": a smaller float type may cut them."""

    @abstractmethod
    def encode(self, products: Latents, b_enc: PerLatent) -> Latents:
        """Return feature activations, never negative."""

    @abstractmethod
    def select(self, x: Inputs, weight: Encoder, b_enc: PerLatent) -> Active:
        """Return the active entries of `encode` alone, in row order, equal up to rounding."""

    def scaled(self, gains: PerLatent | float) -> "Activation":
        """Return what gives `gains` times the activations for `gains` times the products."""
        return self

    def shifted(self, shift: PerLatent) -> "Activation":
        """Return what gives the same activations where each product is smaller by `shift`.

        The shift has been added to `b_enc` already; this is for biases beside it.
        """
        return self

    def of_latents(self, latents: Int[Tensor, " kept"]) -> "Activation":
        """Return the activation of some of the latents, in the order given."""
        return self.with_tensors({name: t[latents] for name, t in self.tensors.items()})

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The activation's tensors, by name."""
        return {name: getattr(self, name) for name in self.tensor_names()}

    @property
    def numbers(self) -> dict[str, int]:
        """The activation's whole numbers, by name."""
        return {
            field.name: getattr(self, field.name) for field in fields(self) if field.type is int
        }

    @classmethod
    def tensor_names(cls) -> tuple[str, ...]:
        """Return the names of its tensors."""
        return tuple(field.name for field in fields(cls) if field.type is not int)

    @classmethod
    def read_numbers(cls, path: Path, config: Mapping[str, object]) -> dict[str, int]:
        """Return its whole numbers from the configuration that the file `path` holds.

        Raises:
            UserError: if one is missing or no whole number.
        """
        found: dict[str, int] = {}
        for name in (field.name for field in fields(cls) if field.type is int):
            value = config.get(name)
            if type(value) is not int:
                raise UserError(
                    f"{path}: {name}={value}; a {cls.name} dictionary needs a whole number"
                )
            found[name] = value
        return found

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Activation":
        """Return it with those of its tensors that are in `tensors`."""
        return replace(self, **{n: tensors[n] for n in self.tensor_names() if n in tensors})

    def check(self, d_sae: int) -> None:
        """Refuse numbers that a dictionary of `d_sae` latents cannot have."""
        return


@dataclass(frozen=True, slots=True)
class ReLU(Activation):
    """`relu(pre)`."""

    name: ClassVar[str] = "standard"
    formula: ClassVar[str] = "relu(pre)"
    code: ClassVar[str] = "acts = torch.relu(pre)"
    transcodes_in_saelens: ClassVar[bool] = True

    def encode(self, products: Latents, b_enc: PerLatent) -> Latents:
        return torch.relu(products + b_enc)

    def select(self, x: Inputs, weight: Encoder, b_enc: PerLatent) -> Active:
        return select.select(x, weight, b_enc, Above(torch.zeros_like(b_enc)))


@dataclass(frozen=True, slots=True)
class JumpReLU(Activation):
    """`relu(pre)` where `pre > threshold` (arXiv 2407.14435)."""

    name: ClassVar[str] = "jumprelu"
    formula: ClassVar[str] = "relu(pre) where pre > threshold"
    code: ClassVar[str] = 'acts = torch.relu(pre) * (pre > w["threshold"])'
    transcodes_in_saelens: ClassVar[bool] = True
    never: ClassVar[tuple[str, ...]] = ("threshold",)

    threshold: Tensor
    """What each pre-activation has to exceed, (d_sae,)."""

    def encode(self, products: Latents, b_enc: PerLatent) -> Latents:
        pre_acts = products + b_enc
        return torch.relu(pre_acts) * (pre_acts > self.threshold)

    def select(self, x: Inputs, weight: Encoder, b_enc: PerLatent) -> Active:
        return select.select(x, weight, b_enc, Above(self.threshold.clamp_min(0)))

    def scaled(self, gains: PerLatent | float) -> Activation:
        return replace(self, threshold=self.threshold * gains)


@dataclass(frozen=True, slots=True)
class TopK(Activation):
    """The `k` largest of `relu(pre)`, fewer where fewer are positive (arXiv 2406.04093)."""

    name: ClassVar[str] = "topk"
    formula: ClassVar[str] = "the k largest of relu(pre)"
    code: ClassVar[str] = """\
values, latents = torch.relu(pre).topk({k}, dim=-1)
acts = torch.zeros_like(pre).scatter(-1, latents, values)"""
    each_alone: ClassVar[bool] = False

    k: int
    """Latents of a row that are active, at most."""

    def encode(self, products: Latents, b_enc: PerLatent) -> Latents:
        positive = torch.relu(products + b_enc)
        # By index, so that equals at the edge never make more than k.
        values, latents = positive.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(positive).scatter(-1, latents, values)

    def select(self, x: Inputs, weight: Encoder, b_enc: PerLatent) -> Active:
        # Of equal latents at the edge the first are taken; `encode` leaves that to torch.
        return select.select(x, weight, b_enc, select.TopK(self.k))

    def of_latents(self, latents: Int[Tensor, " kept"]) -> Activation:
        return replace(self, k=min(self.k, len(latents)))

    def check(self, d_sae: int) -> None:
        require(1 <= self.k <= d_sae, f"k={self.k}; give 1 to d_sae={d_sae}")


@dataclass(frozen=True, slots=True)
class Gated(Activation):
    """`relu(exp(r_mag) * products + b_mag)` where `pre > 0` (arXiv 2404.16014).

    The encoder's bias `b_enc` is the gate's.
    """

    name: ClassVar[str] = "gated"
    formula: ClassVar[str] = "relu(exp(r_mag) * (x @ W_enc) + b_mag) where pre > 0"
    code: ClassVar[str] = """\
size = torch.relu(w["r_mag"].exp() * (x @ w["W_enc"]) + w["b_mag"])
acts = size * (pre > 0)"""
    names_in_file: ClassVar[Mapping[str, str]] = {"b_enc": "b_gate"}

    b_mag: Tensor
    """Bias of the magnitudes, (d_sae,)."""
    r_mag: Tensor
    """Logarithm of the magnitudes' scale against the gate's, (d_sae,)."""

    def encode(self, products: Latents, b_enc: PerLatent) -> Latents:
        return torch.relu(self.r_mag.exp() * products + self.b_mag) * (products + b_enc > 0)

    def select(self, x: Inputs, weight: Encoder, b_enc: PerLatent) -> Active:
        # The bound carries the gate's bias, so that the magnitudes see the bare products.
        support, products = select.select(x, weight, torch.zeros_like(b_enc), Above(-b_enc))
        columns = support.columns
        values = torch.relu(self.r_mag.exp()[columns] * products + self.b_mag[columns])
        fires = values > 0
        before = torch.cat([fires.new_zeros(1, dtype=torch.int64), fires.cumsum(0)])
        counts = before[support.row_ends.long()].diff()
        return Active(support_of(counts, columns[fires], len(b_enc)), values[fires])

    def scaled(self, gains: PerLatent | float) -> Activation:
        # `r_mag` is a ratio of two products that both grow by the gain.
        return replace(self, b_mag=self.b_mag * gains)

    def shifted(self, shift: PerLatent) -> Activation:
        return replace(self, b_mag=self.b_mag + self.r_mag.exp() * shift)


ACTIVATIONS: dict[str, type[Activation]] = {
    activation.name: activation for activation in (ReLU, JumpReLU, TopK, Gated)
}
"""By SAELens's word for each, which is the `architecture` in `cfg.json`."""
