"""Tables that have the columns of their schema, however they are written and read."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sae.base import UserError

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    name: str
    kind: str
    """Arrow's name for its type, such as `int32` or `list<float>`."""
    meaning: str
    group: str = ""
    """A table has all columns of a group or none; those without a group are in every one."""
    beside: str = ""
    """Column of lists that these lists stand beside, entry by entry."""
    names_features: bool = False
    """Whether its lists hold numbers of other features."""

    @property
    def type(self) -> "pyarrow.DataType":
        """The type as arrow has it."""
        return arrow_type(self.kind)


def arrow_type(kind: str) -> "pyarrow.DataType":
    """Return arrow's type of a name such as `int32` or `list<float>`."""
    import pyarrow

    if kind.startswith("list<"):
        return pyarrow.list_(pyarrow.type_for_alias(kind[5:-1]))
    return pyarrow.type_for_alias(kind)


class TableSchema:
    """The file and the columns of a table, in their order on disk."""

    def __init__(self, file: str, *columns: Column) -> None:
        self.file = file
        self.columns = {column.name: column for column in columns}

    @property
    def required(self) -> list[str]:
        """The columns that every table has."""
        return self._wanted(())

    def beside(self, name: str) -> list[str]:
        """Return the names of the lists that stand beside those of `name`."""
        return [column.name for column in self.columns.values() if column.beside == name]

    def table(self, columns: Mapping[str, object]) -> "pyarrow.Table":
        """Put columns together as a table, in the order of the schema.

        Args:
            columns: arrays of numpy or arrow, of the very type of the schema, or sequences of
                Python's objects, which are converted.

        Raises:
            ValueError: for a column that is unknown, missing or of another type.
        """
        import pyarrow

        arrays = {}
        for name, values in columns.items():
            if name not in self.columns:
                raise ValueError(f"{self.file} has no column {name!r}")
            # What has a type of its own is not converted: it has to be the right one.
            typed = isinstance(values, np.ndarray | pyarrow.Array | pyarrow.ChunkedArray)
            arrays[name] = values if typed else pyarrow.array(values, self.columns[name].type)
        table = pyarrow.table({name: arrays[name] for name in self.columns if name in arrays})
        if wrong := self._wrong(table.schema, self._wanted(arrays)):
            raise ValueError(f"{self.file} {wrong}")
        return table

    def nothing(
        self, n: int, names: Collection[str] | None = None
    ) -> dict[str, "pyarrow.Array"]:
        """Return columns of `n` records that nothing is known of: nulls, empty lists.

        Args:
            names: of the columns; None for those that every table has.
        """
        import pyarrow
        from pyarrow.types import is_list

        kinds = {name: self.columns[name].type for name in names or self.required}
        return {
            name: pyarrow.repeat(pyarrow.scalar([] if is_list(kind) else None, kind), n)
            for name, kind in kinds.items()
        }

    def write(self, folder: Path, columns: Mapping[str, object]) -> "pyarrow.Table":
        """Write the file, and return the table as `table` makes it."""
        import pyarrow.parquet

        table = self.table(columns)
        pyarrow.parquet.write_table(table, folder / self.file, compression="zstd")
        return table

    def write_pieces(self, folder: Path, pieces: Iterable[Mapping[str, object]]) -> None:
        """Write the file piece by piece, each a row group without optional columns."""
        import pyarrow
        import pyarrow.parquet

        schema = pyarrow.schema([(name, self.columns[name].type) for name in self.required])
        path = folder / self.file
        with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as file:
            for columns in pieces:
                file.write_table(self.table(columns))

    def read(self, folder: Path, names: Sequence[str] | None = None) -> "pyarrow.Table":
        """Read the file, or some of its columns; what others have added to it is left out.

        Raises:
            UserError: if it is missing or damaged, or a column is missing or of another type.
        """
        import pyarrow.parquet

        path = folder / self.file
        with _explained(path):
            names = self._checked(path, pyarrow.parquet.read_schema(path), names)
            return pyarrow.parquet.read_table(path, columns=names)

    def batches(self, folder: Path) -> Iterator["pyarrow.RecordBatch"]:
        """Read the file as record batches, so that little of it is in memory.

        Raises:
            UserError: as `read`.
        """
        import pyarrow.parquet

        path = folder / self.file
        with _explained(path), pyarrow.parquet.ParquetFile(path) as file:
            names = self._checked(path, file.schema_arrow)
            yield from file.iter_batches(batch_size=8192, columns=names)

    def _checked(
        self, path: Path, found: "pyarrow.Schema", names: Sequence[str] | None = None
    ) -> list[str]:
        """Return the columns to read, if the file has them as they should be."""
        wanted = self._wanted(found.names) if names is None else [*names]
        if wrong := self._wrong(found, wanted):
            raise UserError(
                f"{path} {wrong}; it is damaged or of another version: remove its folder and "
                "run sae analyze"
            )
        return wanted

    def _wanted(self, names: Collection[str]) -> list[str]:
        """Return the columns that a table has to have if it has these."""
        groups = {"", *(one.group for name, one in self.columns.items() if name in names)}
        return [name for name, one in self.columns.items() if one.group in groups]

    def _wrong(self, found: "pyarrow.Schema", wanted: Iterable[str]) -> str:
        """Say what is wrong with the columns that are wanted; nothing if they are right."""
        for name in wanted:
            if name not in found.names:
                return f"lacks the column {name!r}"
            kind, right = found.field(name).type, self.columns[name].type
            if kind != right:
                return f"has the column {name!r} of type {kind}, not {right}"
        return ""


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what a damaged table fails with into a sentence."""
    import pyarrow

    try:
        yield
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(
            f"{path} is missing or damaged ({error}); remove its folder and run sae analyze"
        ) from error
