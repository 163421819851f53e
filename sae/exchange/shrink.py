"""A dictionary made smaller: fewer bits a weight, or fewer latents.

- `bfloat16`, `float16`: every tensor rounded to the nearest number of that type. SAELens loads
  these, and computes in them.
- `int8`: a column of `W_enc`, a row of `W_dec` or of `W_skip` is `scale * integers`, where the
  scale is its largest entry over 127; the scales lie beside, in float32, as `W_enc_scale`
  (d_sae,), `W_dec_scale` (d_sae,), `W_skip_scale` (d_out,). Biases, thresholds and all other
  vectors stay float32: they cost nothing. No other tool knows this.

Whatever the type, `sae.load` makes float32 of it again and computes in that.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from sae.architectures import MatryoshkaConfig
from sae.base.errors import UserError, nearest, require
from sae.base.files import atomic_path
from sae.dictionary import Dictionary
from sae.exchange.tensors import Header, TensorFile

FULL = "float32"
_FLOATS = {FULL: torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INT8 = "int8"
DTYPES = (*_FLOATS, INT8)
_SHORT = {"fp32": FULL, "bf16": "bfloat16", "fp16": "float16"}
# The dimension that shares a scale, of the tensors that int8 is for.
_SCALED_OVER = {"W_enc": 0, "W_dec": 1, "W_skip": 1}
DIRECTIONS_FILE = "decoder.safetensors"


@dataclass(frozen=True, slots=True)
class Shrunk:
    """What was made smaller, and what that cost."""

    n_dropped: int
    """Latents that were left out."""
    d_sae: int
    """Latents before."""
    n_rows: int
    """Held-out rows on which both sides of the figures were measured."""
    n_behaviour_tokens: int
    """Held-out tokens for CE and KL; 0 where these were not measured."""
    before: Mapping[str, float]
    after: Mapping[str, float]


def named_dtype(word: str) -> str:
    """The type that `word` names; `bf16` and its like are short for the long names.

    Raises:
        UserError: if it names none.
    """
    name = _SHORT.get(word, word)
    known = ", ".join(DTYPES)
    require(
        name in DTYPES,
        f"dtype={word} is unknown; choose one of {known}{nearest(word, [*DTYPES, *_SHORT])}",
    )
    return name


def packed(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Tensors as a file has them, contiguous and on the CPU; with int8 also the scales.

    Raises:
        UserError: if an entry is beyond what the type can say.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().float().cpu().contiguous()
        if dtype == INT8 and name in _SCALED_OVER:
            found[name], found[f"{name}_scale"] = _quantized(plain, _SCALED_OVER[name])
        else:
            found[name] = plain if dtype in (FULL, INT8) else _rounded(name, plain, dtype)
    return found


def _rounded(name: str, tensor: Tensor, dtype: str) -> Tensor:
    torch_dtype = _FLOATS[dtype]
    most = torch.finfo(torch_dtype).max
    if name == "threshold":
        # Of a latent that never fires it is the largest number there is.
        tensor = tensor.clamp(max=most)
    rounded = tensor.to(torch_dtype)
    require(
        bool(rounded.isfinite().all()),
        f"{name} has entries beyond {most:g}, the largest number of dtype={dtype}; choose "
        "dtype=bfloat16 or float32",
    )
    return rounded


def _quantized(tensor: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    scale = tensor.abs().amax(dim, keepdim=True) / 127
    integers = (tensor / scale.where(scale > 0, 1)).round().to(torch.int8)
    return integers, scale.squeeze(dim)


def as_loaded(dictionary: Dictionary, dtype: str) -> Dictionary:
    """What `sae.load` makes of the dictionary once it was stored in `dtype`.

    Raises:
        UserError: as `packed`.
    """
    stored = packed(dictionary.tensors, dtype)
    weights: dict[str, Any] = {
        name: _unpacked(name, stored[name], stored.get(f"{name}_scale"))
        for name in dictionary.tensors
    }
    return replace(dictionary, **weights)


def _unpacked(name: str, tensor: Tensor, scale: Tensor | None) -> Tensor:
    whole = tensor.float()
    return whole if scale is None else whole.mul_(scale.unsqueeze(_SCALED_OVER[name]))


def dequantized(file: TensorFile) -> TensorFile:
    """A file of int8 tensors with their scales, as one of float32 tensors.

    Raises:
        UserError: if a scale is missing or misshapen. An integer tensor of another type is
            refused when it is read.
    """
    scales = {name: f"{name}_scale" for name in _SCALED_OVER if name in file.headers}
    headers = dict(file.headers)
    for name, scale in scales.items():
        shape = file.headers[name].shape
        expected = tuple(n for i, n in enumerate(shape) if i != _SCALED_OVER[name])
        found = headers.pop(scale, None)
        require(
            found is not None and found.floating and found.shape == expected,
            f"{file.path}: {name} is int8 and needs {scale} of shape {expected}; give the file "
            "as it was saved",
        )
        headers[name] = Header(shape, floating=True)

    def get(name: str) -> Tensor:
        if name not in scales:
            return file.get(name)
        integers = file.get(name)
        if integers.dtype != torch.int8:
            raise UserError(f"{name} holds {integers.dtype}, where int8 is right")
        return _unpacked(name, integers, file.get(scales[name]).float())

    return TensorFile(file.path, headers, get)


def only_latents(dictionary: Dictionary, kept: Tensor) -> Dictionary:
    """The dictionary of some latents, in the order given.

    Where the others never fire it encodes and reconstructs the same. A `k` stays, but for one
    above the number of latents.

    Args:
        kept: indices, (n,); at least one.
    """
    if len(kept) == dictionary.d_sae and bool((kept.diff() == 1).all()):
        return dictionary
    of_latents = {"b_enc", "W_dec", "threshold", "b_mag", "r_mag"}
    weights: dict[str, Any] = {
        name: tensor[kept] if name in of_latents else tensor
        for name, tensor in dictionary.tensors.items()
    }
    weights["W_enc"] = dictionary.W_enc[:, kept]
    k = None if dictionary.k is None else min(dictionary.k, len(kept))
    return replace(dictionary, **weights, k=k)


def nested_widths(dictionary: Dictionary, kept: NDArray[np.int64]) -> tuple[int, ...]:
    """How many of the latents `kept` lie in each inner level of a Matryoshka dictionary.

    Empty for one that is none, or is no longer as wide as it was trained.

    Args:
        kept: their numbers in `dictionary`, rising.
    """
    ours = dictionary.metadata.get("sae_atlas", {})
    trained = ours.get("sae", {})
    nested = ours.get("architecture") == MatryoshkaConfig.architecture
    if not nested or trained.get("d_sae") != dictionary.d_sae:
        return ()
    names = ("d_sae", "k", "matryoshka_widths")
    widths = MatryoshkaConfig(**{name: trained[name] for name in names}).level_widths
    found = set(np.searchsorted(kept, widths).tolist()) - {0, len(kept)}
    return tuple(sorted(found))


def save_directions(dictionary: Dictionary, folder: Path, dtype: str) -> None:
    """Write what the decoder adds to the activations: `W_dec` (d_sae, d_out) and `b_dec`.

    The file's metadata has `sae_atlas`, JSON with `model_name` and the `hook_name` that they
    are added to.
    """
    tensors = {"W_dec": dictionary.W_dec, "b_dec": dictionary.b_dec}
    place = {"model_name": dictionary.model_name, "hook_name": dictionary.hook_name_out}
    # One entry: several would come in another order each time, and so would the bytes.
    about = {"sae_atlas": json.dumps(place, ensure_ascii=False)}
    with atomic_path(folder / DIRECTIONS_FILE) as temporary:
        temporary.write_bytes(save(packed(tensors, dtype), metadata=about))
