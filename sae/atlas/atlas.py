"""`Atlas`: the folder of an atlas, read through the schema."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.atlas.record import AtlasRecord, read_record
from sae.atlas.schema import CONTEXTS, FEATURES
from sae.base import UserError

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True, slots=True)
class Atlas:
    """An atlas on disk.

    Whatever is read of a folder that is unfinished, damaged or of another version of this
    package is refused with a `UserError`.
    """

    folder: Path

    @property
    def record(self) -> AtlasRecord:
        """Which dictionary, text and settings it was made from."""
        return read_record(self.folder)

    @property
    def digest(self) -> str | None:
        """The digest of its record; None if `sae analyze` would make the atlas anew."""
        if not all((self.folder / table.file).is_file() for table in (FEATURES, CONTEXTS)):
            return None
        try:
            return self.record.digest
        except UserError:
            return None

    def features(self) -> list[dict[str, Any]]:
        """Return the records of `features.parquet`."""
        return list(self.feature_table().to_pylist())

    def contexts(self) -> list[dict[str, Any]]:
        """Return the records of `contexts.parquet`, by feature, group and rank."""
        return list(self.context_table().to_pylist())

    def feature_table(self, names: Sequence[str] | None = None) -> "pyarrow.Table":
        """Return `features.parquet`, or some of its columns, as an arrow table."""
        read_record(self.folder)
        return FEATURES.read(self.folder, names)

    def context_table(self, names: Sequence[str] | None = None) -> "pyarrow.Table":
        """Return `contexts.parquet`, or some of its columns, as an arrow table."""
        read_record(self.folder)
        return CONTEXTS.read(self.folder, names)

    def context_batches(self) -> Iterator["pyarrow.RecordBatch"]:
        """Yield `contexts.parquet` as arrow record batches, so that little is in memory."""
        read_record(self.folder)
        yield from CONTEXTS.batches(self.folder)
