"""How activations are stored: which numbers stand for which values, and raw chunk files."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from sae.base import UserError

# How torch types are stored. Zarr has no bfloat16, so its bits are kept as uint16; the fill
# value is a NaN in each, because activations are finite and what is missing must show. An int8
# has no NaN, but its scales do.
STORED_DTYPES: dict[str, tuple[str, Any]] = {
    "float16": ("float16", np.nan),
    "float32": ("float32", np.nan),
    "bfloat16": ("uint16", 0xFFFF),
    "int8": ("int8", -128),
}
# What a row is read as.
ROW_DTYPES: dict[str, torch.dtype] = {
    name: torch.float32 if name == "int8" else getattr(torch, name) for name in STORED_DTYPES
}
CHECKSUM_BYTES = 4

Stored = tuple[NDArray[Any], NDArray[np.float32] | None]
"""Activations as they are written, (sequence, position, d_in), and for int8 the factor of each
row, (sequence, position)."""


def to_stored(x: Float[Tensor, "sequence position d_in"], dtype: str) -> Stored:
    """Return activations as they are written for `dtype`, and for int8 the factor of each row.

    The factor is the row's largest magnitude over 127, so that nothing is clipped.

    Raises:
        UserError: if a value is not finite, or too large for `dtype`.
    """
    low, high = torch.aminmax(x)
    largest = float(torch.maximum(-low, high))
    if not math.isfinite(largest):
        raise UserError(
            "the activations of the model contain NaN or infinity; run it with "
            "model.dtype=float32"
        )
    # Half a step above the largest float16, where rounding goes to infinity.
    if dtype == "float16" and largest >= 65_520:
        raise UserError(
            f"dtype={dtype} cannot hold an activation of {largest:.3g}; use dtype=bfloat16"
        )
    if dtype == "bfloat16":
        return x.to(torch.bfloat16).view(torch.int16).cpu().numpy().view(np.uint16), None
    if dtype == "int8":
        scales = x.float().abs().amax(-1, keepdim=True) / 127
        levels = torch.round(x / scales.clamp_min(1e-30)).to(torch.int8)
        return levels.cpu().numpy(), scales[..., 0].cpu().numpy()
    stored: NDArray[Any] = x.to(getattr(torch, dtype)).cpu().numpy()
    return stored, None


def joined_stored(parts: Sequence[Stored]) -> Stored:
    """Return some sequences after the others."""
    scales = [factors for _, factors in parts if factors is not None]
    arrays = np.concatenate([array for array, _ in parts])
    return arrays, np.concatenate(scales) if scales else None


def from_stored(
    array: NDArray[Any], scales: NDArray[np.float32] | None = None
) -> Float[Tensor, "sequence position d_in"]:
    """Return what was stored as a tensor of the cache's dtype; int8 becomes float32."""
    if scales is not None:
        return torch.from_numpy(array).float() * torch.from_numpy(scales)[..., None]
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def mapped_chunk(file: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Map a raw chunk file as an array over the file's own pages, once its checksum is right.

    The array may be written to without a change to the file.

    Raises:
        FileNotFoundError or ValueError: if there is no such chunk, or its bytes are wrong.
    """
    raw = np.memmap(file, dtype=np.uint8, mode="c")
    size = int(np.prod(shape)) * dtype.itemsize
    if len(raw) != size + CHECKSUM_BYTES:
        raise ValueError(f"{len(raw)} bytes where {size + CHECKSUM_BYTES} should be")
    (stored,) = raw[size:].view("<u4")
    # Zarr's crc32c codec: the checksum of the bytes before it, little-endian.
    if google_crc32c.value(raw[:size]) != int(stored):
        raise ValueError("the stored checksum is not that of the bytes")
    return raw[:size].view(dtype).reshape(shape)
