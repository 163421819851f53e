"""Columns of lists, as one flat array and the length of every list."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow


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


def list_lengths(
    table: "pyarrow.Table | Mapping[str, pyarrow.ChunkedArray]", name: str
) -> NDArray[np.int64]:
    """Return how long each list of a column is; 0 where there is none."""
    import pyarrow.compute as pc

    lengths = pc.fill_null(pc.list_value_length(table[name]), 0)
    found: NDArray[np.int64] = lengths.to_numpy().astype(np.int64)
    return found


def flat_and_ends(
    table: "pyarrow.Table | Mapping[str, pyarrow.ChunkedArray]", name: str
) -> tuple["pyarrow.Array", NDArray[np.int64]]:
    """Return the entries of a column of lists one after another, and where each list ends."""
    return table[name].combine_chunks().flatten(), np.cumsum(list_lengths(table, name))


def columns_of(table: "pyarrow.Table") -> dict[str, "pyarrow.ChunkedArray"]:
    """Return the columns of a table by name, so that some can be exchanged."""
    return dict(zip(table.column_names, table.columns, strict=True))
