"""What makes the latents of a dictionary active: one class a file, which owns its tensors."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from sae.base import UserError
from sae.core.select import Active

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
        """Its tensors, by name."""
        return {name: getattr(self, name) for name in self.tensor_names()}

    @property
    def numbers(self) -> dict[str, int]:
        """Its whole numbers, by name."""
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
