"""A trained dictionary: weights, how to encode and decode with them, where they belong."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.base.errors import require
from sae.base.provenance import digest_bytes


@dataclass(frozen=True, slots=True)
class Dictionary:
    """A sparse autoencoder for use, on raw activations of one hook of one model.

    Scales, centring and norms of training are folded into the weights. Shapes: `W_enc`
    (d_in, d_sae), `b_enc` (d_sae,), `W_dec` (d_sae, d_in), `b_dec` (d_in,).
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    architecture: str = "standard"
    """SAELens's name; `standard` is `relu(x @ W_enc + b_enc)`."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """`model_name`, `hook_name`, `context_size`, provenance, ..."""

    def __post_init__(self) -> None:
        d_in, d_sae = self.W_enc.shape
        expected = {
            "b_enc": (d_sae,),
            "W_dec": (d_sae, d_in),
            "b_dec": (d_in,),
        }
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            require(found == shape, f"{name} has shape {found} where W_enc asks for {shape}")

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    @property
    def digest(self) -> str:
        """Identifies the weights: what was measured on one dictionary holds for no other."""
        weights = (self.W_enc, self.b_enc, self.W_dec, self.b_dec)
        return digest_bytes(w.detach().cpu().contiguous().numpy().tobytes() for w in weights)

    @property
    def hook_name(self) -> str:
        """The hook that it was trained on."""
        return str(self.metadata["hook_name"])

    @property
    def model_name(self) -> str:
        """The model that it was trained on."""
        return str(self.metadata["model_name"])

    def to(self, device: torch.device | str) -> "Dictionary":
        """The same dictionary with its weights on `device`."""
        return replace(
            self,
            W_enc=self.W_enc.to(device),
            b_enc=self.b_enc.to(device),
            W_dec=self.W_dec.to(device),
            b_dec=self.b_dec.to(device),
        )

    def encode(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
        """Feature activations of raw activations `x`; never negative."""
        return torch.relu(x.to(self.W_enc.dtype) @ self.W_enc + self.b_enc)

    def decode(self, feature_acts: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_in"]:
        """The reconstruction of activations from feature activations."""
        return feature_acts @ self.W_dec + self.b_dec

    def __call__(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_in"]:
        """`decode(encode(x))`."""
        return self.decode(self.encode(x))
