"""Tables that have the columns of their schema, and columns of lists as flat arrays."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from sae.base import UserError, check_whole

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

    Columns: TypeAlias = pyarrow.Table | Mapping[str, pyarrow.ChunkedArray]


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

        Arrays of numpy or arrow have to be of the very type of the schema; other sequences are
        converted.

        Raises:
            ValueError: for a column that is unknown, missing or of another type.
        """
        import pyarrow

        arrays = {}
        for name, values in columns.items():
            if name not in self.columns:
                raise ValueError(f"{self.file} has no column {name!r}")
            typed = isinstance(values, np.ndarray | pyarrow.Array | pyarrow.ChunkedArray)
            arrays[name] = values if typed else pyarrow.array(values, self.columns[name].type)
        table = pyarrow.table({name: arrays[name] for name in self.columns if name in arrays})
        if wrong := self._wrong(table.schema, self._wanted(arrays)):
            raise ValueError(f"{self.file} {wrong}")
        return table

    def nothing(
        self, n: int, names: Collection[str] | None = None
    ) -> dict[str, "pyarrow.Array"]:
        """Return columns, or all required ones, of `n` records of nulls and empty lists."""
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
        with self._opened(folder, names) as (file, wanted):
            return file.read(columns=wanted)

    def check(self, folder: Path) -> None:
        """Refuse a file that `read` would refuse."""
        with self._opened(folder):
            pass

    def batches(self, folder: Path) -> Iterator["pyarrow.RecordBatch"]:
        """Read the file as `read` does, but as record batches: little of it is in memory."""
        with self._opened(folder) as (file, wanted):
            yield from file.iter_batches(batch_size=8192, columns=wanted)

    @contextmanager
    def _opened(
        self, folder: Path, names: Sequence[str] | None = None
    ) -> Iterator[tuple["pyarrow.parquet.ParquetFile", list[str]]]:
        """Open the file to read some columns, if it has them as they should be."""
        import pyarrow.parquet

        path, cure = folder / self.file, "run sae analyze again, which mends it"
        check_whole(path, cure)
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                found = file.schema_arrow
                wanted = self._wanted(found.names) if names is None else [*names]
                if wrong := self._wrong(found, wanted):
                    raise UserError(
                        f"{path} {wrong}; it is damaged or of another version: {cure}"
                    )
                yield file, wanted
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(f"{path} is missing or damaged ({error}); {cure}") from error

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


def list_array(
    values: "pyarrow.Array | NDArray[np.generic]", lengths: NDArray[np.int64] | int
) -> "pyarrow.ListArray":
    """Cut flat `values` into lists of these lengths, or of one length all."""
    import pyarrow

    if isinstance(lengths, int):
        lengths = np.full(len(values) // max(1, lengths), lengths)
    ends = np.concatenate([[0], lengths.cumsum()])
    if not isinstance(values, pyarrow.Array):
        values = pyarrow.array(values)
    return pyarrow.ListArray.from_arrays(pyarrow.array(ends, pyarrow.int32()), values)


def list_lengths(table: "Columns", name: str) -> NDArray[np.int64]:
    """Return how long each list of a column is; 0 where there is none."""
    import pyarrow.compute as pc

    lengths = pc.fill_null(pc.list_value_length(table[name]), 0)
    found: NDArray[np.int64] = lengths.to_numpy().astype(np.int64)
    return found


def flat_and_ends(table: "Columns", name: str) -> tuple["pyarrow.Array", NDArray[np.int64]]:
    """Return the entries of a column of lists one after another, and where each list ends."""
    return table[name].combine_chunks().flatten(), np.cumsum(list_lengths(table, name))


def kept_entries(
    entries: "Mapping[str, pyarrow.Array]",
    lengths: NDArray[np.int64],
    kept: Bool[np.ndarray, " entry"],
) -> dict[str, "pyarrow.ListArray"]:
    """Return columns of lists with equal lengths, given flat, without some of their entries."""
    import pyarrow

    owners = np.repeat(np.arange(len(lengths)), lengths)[kept]
    left, mask = np.bincount(owners, minlength=len(lengths)), pyarrow.array(kept)
    return {name: list_array(values.filter(mask), left) for name, values in entries.items()}


def columns_of(table: "pyarrow.Table") -> dict[str, "pyarrow.ChunkedArray"]:
    """Return the columns of a table by name, so that some can be exchanged."""
    return dict(zip(table.column_names, table.columns, strict=True))
