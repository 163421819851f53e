"""What analysis found, as tables that any tool reads: one folder, the atlas.

features.parquet   a row a feature: density, activations, logits, norms, neighbours, ...
contexts.parquet   a row a context: feature, group, rank, place in the cache, text, activations
labels.csv         what each feature is called, editable by hand
atlas.json         which dictionary, cache and settings
index.html, data/  the page
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.base.errors import UserError, require
from sae.base.files import read_json

FEATURES_FILE = "features.parquet"
CONTEXTS_FILE = "contexts.parquet"
MANIFEST_FILE = "atlas.json"
FORMAT = 2


@dataclass(frozen=True, slots=True)
class Atlas:
    """An atlas on disk."""

    folder: Path

    def check(self) -> None:
        """Refuse a folder that is unfinished, or of another version of this package.

        Raises:
            UserError: if it is.
        """
        _ = self.manifest

    @property
    def manifest(self) -> dict[str, Any]:
        """Which dictionary, cache and settings it was made from.

        Raises:
            UserError: if the folder is unfinished, or of another version of this package.
        """
        path = self.folder / MANIFEST_FILE
        require(
            path.is_file(),
            f"{self.folder} is no finished atlas ({MANIFEST_FILE} is missing); run sae analyze "
            "again, which mends it",
        )
        found: dict[str, Any] = read_json(path)
        made = found.get("format", 1)
        require(
            made == FORMAT,
            f"{self.folder} has atlas format {made}, this is format {FORMAT}; run sae analyze "
            "again",
        )
        return found

    @property
    def digest(self) -> str | None:
        """Of what it was made from; None of a folder that `sae analyze` would make anew."""
        tables = (FEATURES_FILE, CONTEXTS_FILE)
        if not all((self.folder / name).is_file() for name in tables):
            return None
        try:
            found: str = self.manifest["digest"]
        except UserError:
            return None
        return found

    def features(self) -> list[dict[str, Any]]:
        """The rows of `features.parquet`."""
        rows: list[dict[str, Any]] = self.feature_table().to_pylist()
        return rows

    def contexts(self) -> list[dict[str, Any]]:
        """The rows of `contexts.parquet`, by feature, group and rank."""
        rows: list[dict[str, Any]] = self.context_table().to_pylist()
        return rows

    def feature_table(self, columns: list[str] | None = None) -> Any:
        """`features.parquet`, or some of its columns, as an arrow table."""
        return self._table(FEATURES_FILE, columns)

    def context_table(self, columns: list[str] | None = None) -> Any:
        """`contexts.parquet`, or some of its columns, as an arrow table."""
        return self._table(CONTEXTS_FILE, columns)

    def context_batches(self) -> Iterator[Any]:
        """`contexts.parquet` as arrow record batches, so that little of it is in memory."""
        import pyarrow.parquet

        self.check()
        path = self.folder / CONTEXTS_FILE
        with self._explained(CONTEXTS_FILE), pyarrow.parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=8192)

    def _table(self, name: str, columns: list[str] | None) -> Any:
        import pyarrow.parquet

        self.check()
        with self._explained(name):
            return pyarrow.parquet.read_table(self.folder / name, columns=columns)

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Turn what a damaged table fails with into a sentence."""
        import pyarrow

        try:
            yield
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(
                f"{self.folder / name} is missing or damaged ({error}); remove its folder and "
                "run sae analyze"
            ) from error


@torch.no_grad()
def nearest_features(w_dec: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Indices and cosines of the `k` nearest decoder directions of every feature."""
    unit = torch.nn.functional.normalize(w_dec, dim=1)
    k = min(k, len(unit) - 1)
    indices, cosines = [], []
    for start in range(0, len(unit), 1024):
        block = unit[start : start + 1024] @ unit.t()
        own = torch.arange(len(block))
        block[own, own + start] = -2.0
        best = block.topk(k, dim=1)
        indices.append(best.indices.cpu())
        cosines.append(best.values.cpu())
    return torch.cat(indices), torch.cat(cosines)
