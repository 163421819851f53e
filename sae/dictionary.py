"""A trained dictionary: weights, how to encode and decode with them, where they belong."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.base.errors import require
from sae.base.provenance import digest_bytes
from sae.core.select import Above, Active, Rule, TopK, select
from sae.core.sparse import support_of


@dataclass(frozen=True, slots=True)
class Architecture:
    """What makes latents of one architecture fire."""

    formula: str
    """The activations, in words of the fields; `pre` is `x @ W_enc + b_enc`."""
    encode: Callable[..., Tensor]
    """Feature activations from `x @ W_enc` (both (..., d_sae)), `b_enc` and the fields."""
    fields: tuple[str, ...] = ()
    """What it has beside encoder and decoder."""


def _relu(products: Tensor, b_enc: Tensor) -> Tensor:
    return torch.relu(products + b_enc)


def _jumprelu(products: Tensor, b_enc: Tensor, threshold: Tensor) -> Tensor:
    pre_acts = products + b_enc
    return torch.relu(pre_acts) * (pre_acts > threshold)


def _topk(products: Tensor, b_enc: Tensor, k: int) -> Tensor:
    positive = torch.relu(products + b_enc)
    # By index, so that equals at the edge never make more than k.
    values, latents = positive.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(positive).scatter(-1, latents, values)


def _gated(products: Tensor, b_enc: Tensor, b_mag: Tensor, r_mag: Tensor) -> Tensor:
    return torch.relu(r_mag.exp() * products + b_mag) * (products + b_enc > 0)


ARCHITECTURES = {
    "standard": Architecture("relu(pre)", _relu),
    "jumprelu": Architecture("relu(pre) where pre > threshold", _jumprelu, ("threshold",)),
    "topk": Architecture("the k largest of relu(pre)", _topk, ("k",)),
    "gated": Architecture(
        "relu(exp(r_mag) * (x @ W_enc) + b_mag) where pre > 0", _gated, ("b_mag", "r_mag")
    ),
}
CODER = ("W_enc", "b_enc", "W_dec", "b_dec")
"""The tensors of every architecture."""


@dataclass(frozen=True, slots=True)
class Dictionary:
    """A sparse autoencoder or transcoder for use, on raw activations of one model.

    Scales, centring and norms of training are folded into the weights. Shapes: `W_enc`
    (d_in, d_sae), `b_enc` (d_sae,), `W_dec` (d_sae, d_out), `b_dec` (d_out,).
    """

    W_enc: Tensor
    b_enc: Tensor
    """Of a gated one: the gate's."""
    W_dec: Tensor
    b_dec: Tensor
    architecture: str = "standard"
    """A key of `ARCHITECTURES`."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """`model_name`, `hook_name`, `hook_name_out`, `context_size`, provenance, ...; `transcoder`
    of one whose file says that it is one, and not to which hook."""
    threshold: Tensor | None = None
    """(d_sae,), of a jumprelu one."""
    k: int | None = None
    """Of a topk one: latents a row, at most."""
    b_mag: Tensor | None = None
    """(d_sae,), of a gated one."""
    r_mag: Tensor | None = None
    """(d_sae,), of a gated one: log of the magnitudes' scale against the gate's."""
    W_skip: Tensor | None = None
    """(d_out, d_in): what is added to the reconstruction of `x` is `x @ W_skip.T`."""

    def __post_init__(self) -> None:
        known = ", ".join(ARCHITECTURES)
        require(
            self.architecture in ARCHITECTURES,
            f"architecture {self.architecture} is not known; known: {known}",
        )
        fields = ARCHITECTURES[self.architecture].fields
        for name in ("threshold", "k", "b_mag", "r_mag"):
            given, needed = getattr(self, name) is not None, name in fields
            require(given or not needed, f"a {self.architecture} dictionary needs {name}")
            require(needed or not given, f"a {self.architecture} dictionary has no {name}")
        (d_in, d_sae), d_out = self.W_enc.shape, self.W_dec.shape[-1]
        shapes = {"W_dec": (d_sae, d_out), "b_dec": (d_out,), "W_skip": (d_out, d_in)}
        for name, tensor in self.tensors.items():
            found = tuple(tensor.shape)
            expected = (d_in, d_sae) if name == "W_enc" else shapes.get(name, (d_sae,))
            require(
                found == expected,
                f"{name} has shape {found} where {expected} is right for W_enc "
                f"{(d_in, d_sae)} and W_dec {tuple(self.W_dec.shape)}",
            )
        require(self.k is None or 1 <= self.k <= d_sae, f"k={self.k}; give 1 to d_sae={d_sae}")

    def __repr__(self) -> str:
        """One line: the architecture, the sizes, and where it belongs as far as it says."""
        k = "" if self.k is None else f", k={self.k}"
        sizes = f"{self.d_in} to {self.d_sae} latents"
        sizes += "" if self.d_out == self.d_in else f" to {self.d_out}"
        hook, model = (self.metadata.get(name) or "?" for name in ("hook_name", "model_name"))
        return f"Dictionary({self.architecture}{k}, {sizes}, {hook} of {model})"

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The weights that it has, by name, in an order that never changes."""
        names = (*CODER, "threshold", "b_mag", "r_mag", "W_skip")
        return {name: w for name in names if (w := getattr(self, name)) is not None}

    @property
    def d_in(self) -> int:
        """Width of the activations that it reads."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        """Width of the activations that it reconstructs."""
        return self.W_dec.shape[1]

    @property
    def digest(self) -> str:
        """Identifies the weights: what was measured on one dictionary holds for no other."""
        weights = [
            w.detach().cpu().contiguous().numpy().tobytes() for w in self.tensors.values()
        ]
        if self.architecture != "standard" or self.W_skip is not None:
            # The bytes alone do not tell a topk from a standard one.
            about = [self.architecture, self.k, list(self.tensors)]
            weights.append(json.dumps(about).encode())
        return digest_bytes(weights)

    @property
    def hook_name(self) -> str:
        """The hook that it reads."""
        return str(self.metadata["hook_name"])

    @property
    def hook_name_out(self) -> str:
        """The hook that it reconstructs; of an autoencoder the one that it reads."""
        return str(self.metadata.get("hook_name_out") or self.hook_name)

    @property
    def places(self) -> tuple[str, str]:
        """The hooks that it reads and reconstructs."""
        return self.hook_name, self.hook_name_out

    @property
    def is_transcoder(self) -> bool:
        """Whether it reconstructs something else than it reads.

        By its weights, by its hooks, or because its file says so and not to which hook.
        """
        if self.W_skip is not None or self.d_in != self.d_out:
            return True
        out = self.metadata.get("hook_name_out")
        if out:
            return bool(out != self.metadata.get("hook_name"))
        return self.metadata.get("transcoder") is True

    @property
    def model_name(self) -> str:
        """The model that it was trained on."""
        return str(self.metadata["model_name"])

    def to(self, device: torch.device | str) -> "Dictionary":
        """The same dictionary with its weights on `device`."""
        moved: dict[str, Any] = {name: w.to(device) for name, w in self.tensors.items()}
        return replace(self, **moved)

    def encode(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
        """Feature activations of raw activations `x`; never negative."""
        rule = ARCHITECTURES[self.architecture]
        products = x.to(self.W_enc.dtype) @ self.W_enc
        return rule.encode(products, self.b_enc, *(getattr(self, n) for n in rule.fields))

    def encode_sparse(self, x: Float[Tensor, "rows d_in"]) -> Active:
        """The active entries of `encode(x)` and nothing else, equal up to rounding.

        The values are the activations, in row order. Of equal latents at the edge of a topk
        the first are taken, where `encode` leaves the choice to torch.
        """
        x, weight = x.to(self.W_enc.dtype), self.W_enc.t()
        if self.architecture == "gated":
            return self._gated_entries(x, weight)
        (active,) = select(x, weight, self.b_enc, self._rule())
        return active

    def _rule(self) -> Rule:
        if self.k is not None:
            return TopK(self.k)
        if self.threshold is not None:
            return Above(self.threshold.clamp_min(0))
        return Above(torch.zeros_like(self.b_enc))

    def _gated_entries(self, x: Tensor, weight: Tensor) -> Active:
        assert self.r_mag is not None
        assert self.b_mag is not None
        # The bound carries the gate's bias, so that the magnitudes see the bare products.
        no_bias = torch.zeros_like(self.b_enc)
        ((support, products),) = select(x, weight, no_bias, Above(-self.b_enc))
        columns = support.columns
        values = torch.relu(self.r_mag.exp()[columns] * products + self.b_mag[columns])
        fires = values > 0
        before = torch.cat([fires.new_zeros(1, dtype=torch.int64), fires.cumsum(0)])
        counts = before[support.row_ends.long()].diff()
        return Active(support_of(counts, columns[fires], self.d_sae), values[fires])

    def decode(self, feature_acts: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_out"]:
        """What feature activations add up to."""
        return feature_acts @ self.W_dec + self.b_dec

    def reconstruct(
        self, x: Float[Tensor, "... d_in"], feature_acts: Float[Tensor, "... d_sae"]
    ) -> Float[Tensor, "... d_out"]:
        """The reconstruction where `feature_acts` are those of `x`, not computed again."""
        decoded = self.decode(feature_acts)
        if self.W_skip is None:
            return decoded
        return decoded + x.to(self.W_skip.dtype) @ self.W_skip.t()

    def __call__(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        """The reconstruction: `decode(encode(x))`, plus `x @ W_skip.T` where there is one."""
        return self.reconstruct(x, self.encode(x))
