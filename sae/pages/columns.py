"""From columns of tables to the short lists that JSON is made of."""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


def slices(values: list[T], ends: NDArray[np.int64]) -> list[list[T]]:
    """`values` cut where the lists end."""
    found, start = [], 0
    for end in ends.tolist():
        found.append(values[start:end])
        start = end
    return found


def interleaved(columns: list[list[object]]) -> list[object]:
    """The entries of equally long lists in turn."""
    flat: list[object] = [None] * (len(columns) * len(columns[0]))
    for place, column in enumerate(columns):
        flat[place :: len(columns)] = column
    return flat


def rounded(values: NDArray[Any], digits: int = 4) -> list[object]:
    """Numbers to so many significant digits, whole numbers as such; None for no number."""
    if values.dtype.kind in "iub":
        whole: list[object] = values.tolist()
        return whole
    x = values.astype(np.float64)
    finite = np.isfinite(x)
    x = np.where(finite, x, 0)
    size = np.floor(np.log10(np.abs(np.where(x == 0, 1, x))))
    power = np.clip(digits - 1 - size, -300, 300).astype(int)
    # Dividing by a power of ten gives the double nearest to the decimal, multiplying by one
    # tenth to that power would not.
    scale = 10.0 ** np.abs(power)
    short = np.where(power >= 0, np.rint(x * scale) / scale, np.rint(x / scale) * scale)
    found: list[object] = short.tolist()
    for place in np.flatnonzero(~finite).tolist():
        found[place] = None
    return found
