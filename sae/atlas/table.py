"""Tables that have the columns of their schema, however they are written and read."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sae.base.errors import UserError

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True, slots=True)
class Column:
    """A column of one of the tables."""

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
    from_directions: bool = False
    """Whether it comes from the dictionary's directions alone, and from no text."""

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


@dataclass(frozen=True, slots=True)
class TableSchema:
    """The columns of a table, in their order on disk."""

    file: str
    columns: tuple[Column, ...]

    def __getitem__(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)

    def beside(self, name: str) -> list[str]:
        """Return the names of the lists that stand beside those of `name`."""
        return [column.name for column in self.columns if column.beside == name]

    def table(self, columns: Mapping[str, object]) -> "pyarrow.Table":
        """Put columns together as a table, in the order of the schema.

        Args:
            columns: arrays of numpy or arrow, of the very type of the schema, or sequences of
                Python's objects, which are converted.

        Raises:
            ValueError: for a column that is unknown, missing or of another type.
        """
        import pyarrow

        arrays = {
            name: _array(value, self[name].type) if name in self._names() else value
            for name, value in columns.items()
        }
        types = {name: getattr(array, "type", None) for name, array in arrays.items()}
        unknown = [name for name in columns if name not in self._names()]
        wrong = f"has no column {unknown[0]!r}" if unknown else self._wrong(types, None)
        if wrong:
            raise ValueError(f"{self.file} {wrong}")
        there = [column.name for column in self.columns if column.name in arrays]
        return pyarrow.table({name: arrays[name] for name in there})

    @property
    def required(self) -> list[str]:
        """The columns that every table has."""
        return [column.name for column in self.columns if not column.group]

    def nothing(
        self, n: int, names: Collection[str] | None = None
    ) -> dict[str, "pyarrow.Array"]:
        """Return columns of `n` records that nothing is known of: nulls, empty lists.

        Args:
            names: of the columns; None for those that every table has.
        """
        import pyarrow

        return {
            name: pyarrow.array([[]] * n, self[name].type)
            if self[name].kind.startswith("list<")
            else pyarrow.nulls(n, self[name].type)
            for name in (self.required if names is None else names)
        }

    def write(self, folder: Path, columns: Mapping[str, object]) -> "pyarrow.Table":
        """Write the file, and return the table as `table` makes it."""
        import pyarrow.parquet

        table = self.table(columns)
        pyarrow.parquet.write_table(table, folder / self.file, compression="zstd")
        return table

    @contextmanager
    def writer(self, folder: Path) -> Iterator[Callable[[Mapping[str, object]], None]]:
        """Write the file piece by piece, each a row group; pieces have no optional group."""
        import pyarrow
        import pyarrow.parquet

        fields = [(name, self[name].type) for name in self.required]
        with pyarrow.parquet.ParquetWriter(
            folder / self.file, pyarrow.schema(fields), compression="zstd"
        ) as file:
            yield lambda columns: file.write_table(self.table(columns))

    def read(self, folder: Path, names: Sequence[str] | None = None) -> "pyarrow.Table":
        """Read the file, or some of its columns; what others have added to it is left out.

        Raises:
            UserError: if it is missing or damaged, or a column is missing or of another type.
        """
        import pyarrow.parquet

        path = folder / self.file
        with _explained(path):
            there = self._checked(path, pyarrow.parquet.read_schema(path), names)
            return pyarrow.parquet.read_table(path, columns=there)

    def batches(self, folder: Path) -> Iterator["pyarrow.RecordBatch"]:
        """Read the file as record batches, so that little of it is in memory.

        Raises:
            UserError: as `read`.
        """
        import pyarrow.parquet

        path = folder / self.file
        with _explained(path), pyarrow.parquet.ParquetFile(path) as file:
            there = self._checked(path, file.schema_arrow, None)
            yield from file.iter_batches(batch_size=8192, columns=there)

    def _checked(
        self, path: Path, found: "pyarrow.Schema", names: Sequence[str] | None
    ) -> list[str]:
        """Return the columns to read, if the file has them as they should be."""
        types = {field.name: field.type for field in found if field.name in self._names()}
        wrong = self._wrong(types, names)
        if wrong:
            raise UserError(
                f"{path} {wrong}; it is damaged or of another version: remove its folder "
                "and run sae analyze"
            )
        return [*types] if names is None else [*names]

    def _names(self) -> set[str]:
        return {column.name for column in self.columns}

    def _wrong(
        self, types: Mapping[str, "pyarrow.DataType"], names: Sequence[str] | None
    ) -> str:
        """Say what is wrong with columns of these types; nothing if they are right.

        Args:
            names: columns that have to be there; None for those that the schema asks for.
        """
        groups = {"", *(self[name].group for name in types)}
        for column in self.columns:
            name, found = column.name, types.get(column.name)
            wanted = column.group in groups if names is None else name in names
            if wanted and name not in types:
                return f"lacks the column {name!r}"
            if (names is None or wanted) and name in types and found != column.type:
                return f"has the column {name!r} of type {found}, not {column.type}"
        return ""


def _array(values: object, kind: "pyarrow.DataType") -> object:
    """Return values as an arrow array; only what has no type of its own is converted."""
    import pyarrow

    if isinstance(values, np.ndarray):
        return pyarrow.array(values)
    if isinstance(values, pyarrow.Array | pyarrow.ChunkedArray):
        return values
    return pyarrow.array(values, kind)


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
