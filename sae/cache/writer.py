"""Writing a cache so that it can be killed at any instant and resumed to the same bytes.

The text is fixed first (`create_cache`), then chunks of activations are filled in, each
with one atomic write, in any order. What is already there is found by reading it: a chunk
that is missing or damaged reads as such, so repairing is the same as resuming. Statistics
are reduced over chunks in a fixed order from the stored values, whoever wrote them.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor
from zarr.codecs import Crc32cCodec

from sae.base.errors import UserError
from sae.base.files import atomic_path, explained_failures
from sae.base.provenance import digest
from sae.cache.layout import (
    FORMAT,
    FORMAT_VERSION,
    STATISTICS,
    STORED_DTYPES,
    TEXT,
    chunk_slices,
    from_stored,
    read_whole,
    to_stored,
)
from sae.text.packing import PackedText

SEQUENCES_A_CHUNK = 32
_QUANTILES = 101


@dataclass(frozen=True, slots=True)
class HookShape:
    """A hook to be harvested: its module path and the width of its activations."""

    hook_name: str
    module: str
    d_in: int


class CacheWriter:
    """An unfinished cache, opened for filling."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.group = zarr.open_group(str(path), mode="r+")
        self.hooks: list[str] = list(self._attributes["hooks"])
        self.dtype: str = self._attributes["dtype"]

    @property
    def _attributes(self) -> dict[str, Any]:
        return dict(self.group.attrs)

    def _array(self, name: str) -> Any:
        return self.group[name]

    @property
    def digest(self) -> str:
        """Identifies what this cache is to hold."""
        return str(self._attributes["digest"])

    @property
    def complete(self) -> bool:
        """Whether everything is written, statistics included."""
        return bool(self._attributes["complete"])

    @property
    def weight_digest(self) -> str:
        """Identifies the weights of the model that the cache was begun with."""
        return str(self._attributes["model"]["weight_digest"])

    @property
    def tokens(self) -> NDArray[np.int32]:
        """Token ids, (sequence, position)."""
        return np.asarray(self._array("tokens")[...])

    def chunks(self) -> list[slice]:
        """Sequences of each chunk."""
        return chunk_slices(self._array("tokens").shape[0], SEQUENCES_A_CHUNK)

    def intact(self) -> bool:
        """Whether the cache is complete and everything in it reads as it was written."""
        statistics = (f"statistics/{h}/{n}" for h in self.hooks for n in STATISTICS)
        return (
            self.complete
            and self.text_intact()
            and all(self._whole(name) for name in statistics)
            and not self.missing()
        )

    def text_intact(self) -> bool:
        """Whether tokens, documents and split read as they were written."""
        return all(self._whole(name) for name in TEXT)

    def _whole(self, name: str) -> bool:
        try:
            read_whole(self.group[name])
        except (KeyError, ValueError):
            return False
        return True

    def write_text(self, text: PackedText) -> None:
        """Put the text back after damage.

        Raises:
            UserError: if `text` is not the one that the activations were computed from.
        """
        documents = digest(text.document_digests.tolist())
        if documents != self._attributes["data_digest"]:
            raise UserError(
                f"{self.path} is damaged, and the text that it was made of has changed; "
                "remove it and harvest again"
            )
        with explained_failures(self.path):
            for name in TEXT:
                if not self._whole(name):
                    _store(self.group, name, getattr(text, name), overwrite=True)

    def empty(self) -> bool:
        """Whether no activations have been written yet."""
        arrays: list[Any] = [self._array(f"activations/{hook}") for hook in self.hooks]
        return not any(array.nchunks_initialized for array in arrays)

    def missing(self) -> list[slice]:
        """Chunks that some hook has not got, or whose bytes are damaged."""
        return [c for c in self.chunks() if not all(self._has(h, c) for h in self.hooks)]

    def _stored(self, hook: str, sequences: slice) -> NDArray[Any]:
        return np.asarray(self._array(f"activations/{hook}")[sequences])

    def _has(self, hook: str, sequences: slice) -> bool:
        try:
            x = from_stored(self._stored(hook, sequences))
            norms = np.asarray(self._array(f"norms/{hook}")[sequences])
        except ValueError:
            return False
        return not (bool(x[:, 0, 0].isnan().any()) or bool(np.isnan(norms).any()))

    def write(self, sequences: slice, activations: dict[str, Tensor]) -> None:
        """Store one chunk of every hook.

        Args:
            activations: for each hook (sequence, position, d_in).
        """
        with explained_failures(self.path):
            for hook, x in activations.items():
                stored = to_stored(x, self.dtype)
                norms = from_stored(stored).float().norm(dim=-1).numpy()
                self._array(f"norms/{hook}")[sequences] = norms
                self._array(f"activations/{hook}")[sequences] = stored

    def finish(self) -> None:
        """Reduce the statistics over all chunks and declare the cache complete."""
        rows = ~np.isin(self.tokens, self._attributes["special_token_ids"])
        rows &= ~np.asarray(self._array("held_out")[...])[:, None]
        with explained_failures(self.path):
            for hook in self.hooks:
                self._write_statistics(hook, rows)
            self.group.attrs["complete"] = True

    def _write_statistics(self, hook: str, rows: NDArray[np.bool_]) -> None:
        """Mean and variance by the parallel update of Chan et al. 1979, chunk after chunk."""
        count = 0
        mean = torch.zeros(self._array(f"activations/{hook}").shape[2], dtype=torch.float64)
        squares = torch.zeros_like(mean)
        for chunk in self.chunks():
            x = from_stored(self._stored(hook, chunk))[torch.from_numpy(rows[chunk])].double()
            if len(x):
                delta = x.mean(0) - mean
                squares += (x - x.mean(0)).square().sum(0)
                squares += delta.square() * count * len(x) / (count + len(x))
                count += len(x)
                mean += delta * len(x) / count
        norms = np.asarray(self._array(f"norms/{hook}")[...])[rows]
        found = {
            "mean": mean.numpy(),
            "variance": (squares / count).numpy(),
            "norm_quantiles": np.quantile(
                norms.astype(np.float64), np.linspace(0, 1, _QUANTILES)
            ),
        }
        for name, values in found.items():
            _store(self.group, f"statistics/{hook}/{name}", values, overwrite=True)


def _store(
    group: zarr.Group, name: str, data: NDArray[Any], *, overwrite: bool = False
) -> None:
    # A row chunk of text is 32 times that of activations: they are small and read whole.
    chunks = (min(len(data), 1024), *data.shape[1:])
    group.create_array(
        name,
        data=data,
        chunks=chunks,
        compressors=[Crc32cCodec()],
        filters=None,
        overwrite=overwrite,
        # Zarr leaves out chunks of zeros; then one that got lost would read as zeros.
        config={"write_empty_chunks": True},
    )


def create_cache(
    path: Path,
    text: PackedText,
    hooks: list[HookShape],
    *,
    dtype: str,
    attributes: dict[str, Any],
) -> CacheWriter:
    """Lay out a cache with its text and room for activations, appearing all at once."""
    n, context = text.tokens.shape
    stored, fill = STORED_DTYPES[dtype]
    raw: dict[str, Any] = {"compressors": [Crc32cCodec()], "filters": None}
    with atomic_path(path) as temporary:
        group = zarr.create_group(str(temporary))
        for name in ("tokens", "documents", "held_out", "document_digests"):
            _store(group, name, getattr(text, name))
        for hook in hooks:
            group.create_array(
                f"activations/{hook.hook_name}",
                shape=(n, context, hook.d_in),
                chunks=(SEQUENCES_A_CHUNK, context, hook.d_in),
                dtype=stored,
                fill_value=fill,
                attributes={"dtype": dtype},
                **raw,
            )
            group.create_array(
                f"norms/{hook.hook_name}",
                shape=(n, context),
                chunks=(SEQUENCES_A_CHUNK, context),
                dtype="float32",
                fill_value=np.nan,
                **raw,
            )
        group.attrs.update(
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "complete": False,
                "dtype": dtype,
                "hooks": {h.hook_name: {"module": h.module, "d_in": h.d_in} for h in hooks},
                **attributes,
            }
        )
    return CacheWriter(path)


def resume_cache(path: Path, digest: str) -> CacheWriter | None:
    """The cache at `path` if it is, or is to become, the one that `digest` describes.

    Returns None if nothing is there, or nothing but another one's text: its harvest ended
    before the first chunk, as it does when dtype cannot hold the activations.

    Raises:
        UserError: if something else is there; it is left as it is.
    """
    if not path.exists():
        return None
    writer = None
    with contextlib.suppress(FileNotFoundError, KeyError, ValueError):
        writer = CacheWriter(path)
    if writer is None:
        raise UserError(
            f"{path} holds something that is no activation cache; choose another run="
        )
    if writer.digest != digest and not writer.complete and writer.empty():
        return None
    if writer.digest != digest:
        raise UserError(
            f"{path} holds a cache of another model, text or setting; choose another run=... "
            "or remove it"
        )
    # A process that was killed inside a write leaves the half that it had written.
    for half in path.rglob("*.partial"):
        half.unlink()
    return writer


def bytes_needed(n_tokens: int, hooks: list[HookShape], dtype: str) -> int:
    """Size on disk of a cache: activations, norms, tokens and documents."""
    width = np.dtype(STORED_DTYPES[dtype][0]).itemsize
    return n_tokens * (sum(h.d_in * width + 4 for h in hooks) + 8)
