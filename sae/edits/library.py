"""What edits refer to, on disk: dictionaries with their atlases, caches and vectors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae.atlas import Atlas
from sae.base import UserError, digest_bytes, require
from sae.base.names import check_names
from sae.cache.layout import ActivationCache, open_cache
from sae.dictionary import Dictionary
from sae.edits.file import Edits
from sae.edits.record import EditRecord
from sae.exchange.dictionaries import load
from sae.models import ModelConfig, ModelRecord, record_without_weights
from sae.run import RUN_CACHE, Run, cache_location

_ROWS = 65_536
"""Rows of a cache by which directions are measured."""
_HELD = 8
"""Dictionaries and caches that are kept in memory."""


@dataclass(frozen=True)
class Named:
    """A dictionary that edits name, with what was measured of it."""

    name: str
    dictionary: Dictionary

    @cached_property
    def digest(self) -> str:
        """Identifies its weights."""
        return self.dictionary.digest

    @cached_property
    def run(self) -> Run | None:
        """The run that it lies in, if any."""
        folder = Path(self.name)
        return Run(folder.parent.parent) if folder.parent.name == "dictionaries" else None

    @cached_property
    def highest(self) -> Sequence[float] | str:
        """The highest activation of each feature, or a sentence that says why it is unknown."""
        found: Sequence[float] | str = self._column("max_activation")
        return found

    @cached_property
    def histograms(self) -> Sequence[Sequence[int]] | str:
        """Codes of each feature, counted in equal bins of (0, highest], or why not."""
        found: Sequence[Sequence[int]] | str = self._column("histogram")
        return found

    def _column(self, name: str) -> Any:
        if self.run is None:
            return f"{self.name} is not in a run, so no atlas of it is known"
        atlas = Atlas(self.run.atlas(Path(self.name).name))
        if not atlas.folder.exists():
            which = f"run={self.run.folder} dictionary={Path(self.name).name}"
            return f"{self.name} has no atlas; make one with: sae analyze {which}"
        try:
            own = Path(self.name).name
            self.run.check_measured(own, self.dictionary, atlas.record, "analyze")
            return atlas.feature_table([name])[name].to_pylist()
        except UserError as error:
            return str(error)


@dataclass(frozen=True)
class Measured:
    """Activations at a hook of a cache, by which sizes are measured."""

    cache: ActivationCache
    hook_name: str

    @cached_property
    def median_norm(self) -> float:
        """Median norm of the rows of a training."""
        quantiles = self.cache.statistics(self.hook_name)["norm_quantiles"]
        return float(quantiles[len(quantiles) // 2])

    @cached_property
    def rows(self) -> Float[Tensor, "row d"]:
        """Up to `_ROWS` rows of text, from chunks spread over the cache, in float64."""
        chunks, keep = self.cache.chunks(self.hook_name), self.cache.text_rows()
        each = [int(keep[chunk].sum()) for chunk in chunks]
        wanted = max(1, min(len(chunks), round(_ROWS * len(chunks) / max(1, sum(each)))))
        found = []
        for chunk in chunks[:: max(1, len(chunks) // wanted)]:
            x = self.cache.read(self.hook_name, chunk)
            found.append(x[torch.from_numpy(keep[chunk])].double())
        return torch.cat(found)[:_ROWS]

    @cached_property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Covariance of the rows."""
        return torch.cov(self.rows.t(), correction=0)

    @cached_property
    def second_moments(self) -> Float[Tensor, "d d"]:
        """Mean of xxᵀ over the rows."""
        return self.rows.t() @ self.rows / len(self.rows)


class Library:
    """Loads what edits refer to, each once, and refuses what is not what was meant."""

    def __init__(self) -> None:
        self.dictionary: Callable[[str], Named] = lru_cache(_HELD)(_named)
        self.measured: Callable[[str, str], Measured] = lru_cache(_HELD)(_measured)

    def named(self, record: EditRecord) -> Named:
        """Return the dictionary of a record.

        Raises:
            UserError: if there is none, or it is another than was meant.
        """
        found = self.dictionary(str(record.dictionary))
        if record.digest is not None:
            _check_digest(str(record.dictionary), found.digest, record.digest)
        return found

    def model(self, edits: Edits, name: str | None, where: str) -> ModelRecord:
        """Return the record of the model that edits are of.

        Args:
            name: the model, where neither the edits nor a dictionary of them says which.
            where: the file of the edits, for the sentence of the error.

        Raises:
            UserError: if nothing says which.
        """
        for record in edits.records:
            if record.dictionary is not None:
                found = self.named(record).dictionary
                if found.record.model is not None:
                    return found.record.model
        chosen = edits.model or name
        if chosen is None:
            raise UserError(
                f"{where} does not say which model its edits belong to; give "
                "model_name=smollm2, or a line model: in the file"
            )
        return record_without_weights(ModelConfig(name=chosen).name)

    def digest(self, record: EditRecord) -> str | None:
        """Return the digest of what a record refers to; None if that is nothing on disk."""
        if record.dictionary is not None:
            return self.dictionary(record.dictionary).digest
        given = record.direction
        return _file_digest(Path(given)) if isinstance(given, str) else None

    def rows(self, record: EditRecord, hook_name: str) -> Measured | str:
        """Return what a record's sizes are measured by, or a sentence that says why nothing."""
        place = record.cache
        if place is None and record.dictionary is not None:
            run = self.dictionary(record.dictionary).run
            place = None if run is None else cache_location(str(run.folder), RUN_CACHE)
        if place is None:
            return "no cache is known to measure it by; give cache: its place"
        if record.cache is None and "://" not in place and not Path(place).exists():
            return f"{place} is missing, by which it is measured; give cache: its place"
        try:
            return self.measured(place, hook_name)
        except UserError as error:
            return str(error)


def _named(path: str) -> Named:
    return Named(path, load(path))


def _measured(place: str, hook_name: str) -> Measured:
    cache = open_cache(place)
    return Measured(cache, cache.hook(hook_name))


def vector_of(record: EditRecord) -> Float[Tensor, " d"]:
    """Return the vector of a record's direction, as it is in its file.

    Raises:
        UserError: if the file is missing, damaged, of another kind, or another than was meant.
    """
    given = record.direction
    if isinstance(given, Tensor):
        return given.detach().float()
    path = Path(str(given))
    check_names(path)
    require(path.is_file(), f"direction={given} is not a file; give a file that holds a vector")
    if record.digest is not None:
        _check_digest(str(given), _file_digest(path), record.digest)
    try:
        found = _read_vector(path)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"direction={given} cannot be read: {error}") from error
    require(
        found.dim() == 1 and len(found) > 0 and found.is_floating_point(),
        f"direction={given} holds {tuple(found.shape)} numbers; give a single vector of "
        "floating-point numbers",
    )
    require(
        bool(torch.isfinite(found).all()) and bool(found.any()),
        f"direction={given} is not a direction, because it is zero or contains numbers that "
        "are not finite",
    )
    return found.float()


def _read_vector(path: Path) -> Tensor:
    if path.suffix == ".npy":
        # Never what Python would have to unpickle, which could run anything.
        return torch.from_numpy(np.load(path, allow_pickle=False))
    require(
        path.suffix == ".safetensors",
        f"direction={path} has an unknown ending; give a .npy or .safetensors file",
    )
    from safetensors.torch import load_file

    tensors = load_file(path)
    require(
        len(tensors) == 1,
        f"direction={path} holds {len(tensors)} tensors; give a file with one tensor",
    )
    found: Tensor = next(iter(tensors.values()))
    return found


def _file_digest(path: Path) -> str:
    return digest_bytes([path.read_bytes()])


def _check_digest(name: str, found: str, wanted: str) -> None:
    require(
        wanted == found,
        f"{name} has the digest {found}, but the edit was made for {wanted}; give the file "
        "that it was made for",
    )
