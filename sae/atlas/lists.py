"""Columns of lists, as one flat array and the length of every list."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow

    Columns: TypeAlias = pyarrow.Table | Mapping[str, pyarrow.ChunkedArray]


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
    """Return columns of lists that stand beside each other, without some of their entries.

    Args:
        entries: those of each column, one list after another.
        lengths: how many of them each list has.
        kept: whether each of them stays.
    """
    import pyarrow

    owners = np.repeat(np.arange(len(lengths)), lengths)[kept]
    left, mask = np.bincount(owners, minlength=len(lengths)), pyarrow.array(kept)
    return {name: list_array(values.filter(mask), left) for name, values in entries.items()}


def columns_of(table: "pyarrow.Table") -> dict[str, "pyarrow.ChunkedArray"]:
    """Return the columns of a table by name, so that some can be exchanged."""
    return dict(zip(table.column_names, table.columns, strict=True))
