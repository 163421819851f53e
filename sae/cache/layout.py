"""What is inside an activation cache, and opening one.

    NAME.zarr/
      tokens                     int32   (sequence, position)
      documents                  int32   (sequence, position), index of the document
      document_digests           uint64  (document,)
      held_out                   bool    (sequence,), never trained on
      activations/{hook_name}    float16 (sequence, position, d_in)
      norms/{hook_name}          float32 (sequence, position), ‖x‖ of the stored rows
      statistics/{hook_name}/    mean, variance (d_in,); norm_quantiles (101,)

Chunks are raw little-endian bytes followed by a CRC-32C, zarr's own codec: every read is
verified, by any zarr reader. Rows that were never written read as NaN, and the group says
`complete: false` until its statistics are in place.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor

from sae.base.errors import UserError, nearest
from sae.base.provenance import digest

FORMAT = "sae-atlas activation cache"
FORMAT_VERSION = 1
TEXT = ("tokens", "documents", "held_out", "document_digests")
STATISTICS = ("mean", "variance", "norm_quantiles")

# How torch types are stored. Zarr has no bfloat16, so its bits are kept as uint16; the fill
# value is a NaN in each, because activations are finite and what is missing must show.
STORED_DTYPES: dict[str, tuple[str, Any]] = {
    "float16": ("float16", np.nan),
    "float32": ("float32", np.nan),
    "bfloat16": ("uint16", 0xFFFF),
}


def to_stored(x: Tensor, dtype: str) -> NDArray[Any]:
    """Activations as the numpy array that is written for `dtype`.

    Raises:
        UserError: if a value is not finite, or too large for `dtype`.
    """
    if not bool(torch.isfinite(x).all()):
        raise UserError("the model's activations hold NaN or infinity; run it in float32")
    if dtype == "bfloat16":
        return x.to(torch.bfloat16).view(torch.int16).cpu().numpy().view(np.uint16)
    stored = x.to(getattr(torch, dtype)).cpu()
    if not bool(torch.isfinite(stored).all()):
        largest = float(x.abs().max())
        raise UserError(
            f"dtype={dtype} cannot hold an activation of {largest:.3g}; say dtype=bfloat16"
        )
    array: NDArray[Any] = stored.numpy()
    return array


def from_stored(array: NDArray[Any]) -> Tensor:
    """What was stored, as a tensor of the cache's dtype."""
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


@dataclass(frozen=True, slots=True)
class ActivationCache:
    """An opened cache; arrays are read when they are asked for."""

    path: Path
    group: zarr.Group

    @property
    def attributes(self) -> dict[str, Any]:
        """The group's description of itself."""
        return dict(self.group.attrs)

    @property
    def digest(self) -> str:
        """Identifies the content: settings, the model's weights, the text, the tokenizer."""
        about = self.attributes
        weights = about["model"]["weight_digest"]
        return digest(
            [about["digest"], weights, about["data_digest"], about["tokenizer_digest"]]
        )

    @property
    def hook_names(self) -> list[str]:
        """The hooks that were harvested."""
        return list(self.attributes["hooks"])

    @property
    def context_size(self) -> int:
        """Tokens a row."""
        return int(self._array("tokens").shape[1])

    @property
    def tokens(self) -> NDArray[np.int32]:
        """Token ids, (sequence, position)."""
        return self._whole("tokens")

    @property
    def documents(self) -> NDArray[np.int32]:
        """Index of the document of each token, (sequence, position)."""
        return self._whole("documents")

    @property
    def held_out(self) -> NDArray[np.bool_]:
        """Which sequences are never trained on, (sequence,)."""
        return self._whole("held_out")

    def hook(self, hook_name: str | None) -> str:
        """`hook_name` if the cache has it; with None the only one there is."""
        if hook_name is None:
            if len(self.hook_names) == 1:
                return self.hook_names[0]
            raise UserError(
                f"{self.path} holds {len(self.hook_names)} hooks; choose one with "
                f"hook_name={self.hook_names[0]}"
            )
        if hook_name not in self.hook_names:
            raise UserError(
                f"hook_name={hook_name} is not in {self.path}"
                f"{nearest(hook_name, self.hook_names)}; it holds {', '.join(self.hook_names)}"
            )
        return hook_name

    def d_in(self, hook_name: str) -> int:
        """Width of the activations at a hook."""
        return int(self._array(f"activations/{hook_name}").shape[2])

    def norms(self, hook_name: str) -> NDArray[np.float32]:
        """Norms of the stored rows, (sequence, position)."""
        return self._whole(f"norms/{hook_name}")

    def statistics(self, hook_name: str) -> dict[str, NDArray[np.float64]]:
        """`mean` and `variance` (d_in,) and `norm_quantiles` (101,) of the training rows."""
        return {n: self._whole(f"statistics/{hook_name}/{n}") for n in STATISTICS}

    def text_rows(self) -> NDArray[np.bool_]:
        """Which tokens are text, not special tokens, (sequence, position)."""
        return ~np.isin(self.tokens, self.attributes["special_token_ids"])

    def chunks(self, hook_name: str) -> list[slice]:
        """The sequences of each chunk, in order."""
        array = self._array(f"activations/{hook_name}")
        return chunk_slices(array.shape[0], array.chunks[0])

    def read(self, hook_name: str, sequences: slice) -> Tensor:
        """Activations of some sequences, (sequence, position, d_in), verified.

        Raises:
            UserError: if a chunk is missing or its bytes have changed.
        """
        array = self._array(f"activations/{hook_name}")
        try:
            x = from_stored(np.asarray(array[sequences]))
        except ValueError as error:
            raise UserError(
                f"{self.path}: activations/{hook_name} is damaged in sequences "
                f"{sequences.start} to {sequences.stop - 1} ({error}); "
                "run the same harvest again to repair it"
            ) from error
        if bool(x[:, 0, 0].isnan().any()):
            raise UserError(
                f"{self.path}: activations/{hook_name} misses a chunk in sequences "
                f"{sequences.start} to {sequences.stop - 1}; run the same harvest again"
            )
        return x

    def _array(self, name: str) -> Any:
        return self.group[name]

    def _whole(self, name: str) -> NDArray[Any]:
        try:
            return read_whole(self._array(name))
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{self.path}: {name} is missing or damaged ({error}); harvest again"
            ) from error


def read_whole(array: Any) -> NDArray[Any]:
    """All of a zarr array, every chunk of it.

    Raises:
        ValueError: if a chunk is damaged, or is not there: zarr would make it up of zeros.
    """
    if array.nchunks_initialized < array.nchunks:
        raise ValueError(f"{array.nchunks - array.nchunks_initialized} chunks are not there")
    return np.asarray(array[...])


def chunk_slices(n: int, size: int) -> list[slice]:
    """`range(n)` in pieces of `size`, the last one shorter."""
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def open_cache(path: str | Path) -> ActivationCache:
    """Open a finished cache for reading.

    Raises:
        UserError: if there is none, it is another version, or its harvest is not finished.
    """
    path = Path(path)
    try:
        group = zarr.open_group(str(path), mode="r")
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise UserError(f"{path} is no activation cache; make one with: sae harvest") from error
    attributes = dict(group.attrs)
    if attributes.get("format") != FORMAT:
        raise UserError(f"{path} is a zarr group but no activation cache of sae-atlas")
    if attributes.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path} has cache format version {attributes.get('format_version')}, this is "
            f"version {FORMAT_VERSION}; harvest again"
        )
    if not attributes.get("complete"):
        raise UserError(f"{path} is not finished; run the same harvest again to complete it")
    return ActivationCache(path, group)
