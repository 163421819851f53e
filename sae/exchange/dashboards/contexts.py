"""Contexts of other tools' dashboards as rows of `contexts.parquet`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sae.atlas import CONTEXTS, GROUPS, list_lengths
from sae.base import UserError
from sae.exchange.dashboards.parts import Row, check_lengths, column, feature_number

if TYPE_CHECKING:
    import pyarrow

_PLACE = re.compile(r"(\d{1,15}):(\d{1,9})")


def context_rows(rows: list[Row], path: Path) -> "pyarrow.Table":
    """Contexts as they came, with what they are told by, and `highest` of each.

    Args:
        rows: in Neuronpedia's words.
        path: where they are from.

    Raises:
        UserError: if a row is not of the form.
    """
    import pyarrow as pa

    numbers = [feature_number(row.get("index"), path) for row in rows]
    table = pa.table(
        {
            "feature": pa.array(numbers, pa.int32()),
            "tokens": column(rows, "tokens", pa.list_(pa.string()), path),
            "values": column(rows, "values", pa.list_(pa.float32()), path),
            "low": column(rows, "binMin", pa.float64(), path),
            "high": column(rows, "binMax", pa.float64(), path),
        }
    )
    check_lengths(table, "tokens", "values", ("tokens", "values"), path)
    sizes = list_lengths(table, "values")
    flat = table["values"].combine_chunks().flatten()
    values = flat.to_numpy(zero_copy_only=False)
    nothing = table["tokens"].combine_chunks().flatten().null_count
    if nothing or not sizes.all() or not np.isfinite(values).all():
        raise UserError(
            f"{path} has a context without tokens, or with an activation that is no finite "
            "number"
        )
    starts = np.cumsum(sizes) - sizes
    highest = np.maximum.reduceat(values, starts)
    peaks = [
        _peak(row, values[start : start + length])
        for row, start, length in zip(rows, starts.tolist(), sizes.tolist(), strict=True)
    ]
    places = [_place(row, n) for row, n in zip(rows, sizes.tolist(), strict=True)]
    low, high = (table[name].to_numpy() for name in ("low", "high"))
    group, band = _groups(low, high, highest)
    return pa.table(
        {
            "feature": table["feature"],
            "group": pa.array(group, pa.int8()),
            "band": pa.array(band, pa.int8()),
            "sequence": pa.array([sequence for sequence, _ in places], pa.int64()),
            "start": pa.array([start for _, start in places], pa.int32()),
            "peak": pa.array(peaks, pa.int32()),
            "activation": pa.array(values[starts + np.array(peaks)], pa.float32()),
            "tokens": table["tokens"],
            "activations": table["values"],
            "highest": pa.array(highest, pa.float64()),
        }
    )


def _peak(row: Row, values: NDArray[np.float32]) -> int:
    """The place that a context was chosen for; SAEDashboard's own may lie before the first."""
    peak = row.get("qualifyingTokenIndex")
    if type(peak) is int and 0 <= peak < len(values):
        return peak
    return int(values.argmax())


def _place(row: Row, length: int) -> tuple[int, int]:
    """Sequence and first position; −1 where the sequence is not told."""
    told = _PLACE.fullmatch(str(row.get("dataIndex")))
    if told:
        return int(told[1]), int(told[2])
    # A whole prompt without its first token.
    return -1, int(row.get("n_tokens_in_prompt") == length + 1)


def _groups(
    low: NDArray[np.float64], high: NDArray[np.float64], highest: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """0 for top, 1 for a band, 2 for silent; and which band, −1 for none."""
    within = (low >= 0) & (high > low)
    band = np.where(within, np.rint(low / np.where(within, high - low, 1)), -1)
    group = np.where(highest <= 0, 2, np.where(within, 1, 0))
    band = np.where(group == 1, np.clip(band, -1, 99), -1)
    return group, band.astype(np.int64)


def ordered(table: "pyarrow.Table") -> "pyarrow.Table":
    """Return a table of an atlas's contexts, by feature, group and rank.

    Ids of tokens are null, for no dashboard holds them.

    Args:
        table: as `context_rows` gives it, in any order.
    """
    import pyarrow

    feature, group, band = (table[name].to_numpy() for name in ("feature", "group", "band"))
    strongest = np.where(group == 0, -table["activation"].to_numpy(), 0)
    order = np.lexsort((np.arange(len(table)), strongest, -band.astype(int), group, feature))
    table = table.take(pyarrow.array(order))
    feature, group, band = feature[order], group[order], band[order]
    same = np.r_[False, (np.diff(feature) == 0) & (np.diff(group) == 0) & (np.diff(band) == 0)]
    began = np.maximum.accumulate(np.where(same, 0, np.arange(len(same))))
    columns = {name: table[name] for name in table.column_names if name != "peak"}
    return CONTEXTS.table(
        {
            **columns,
            "group": pyarrow.array(GROUPS).take(pyarrow.array(group)),
            "rank": (np.arange(len(same)) - began).astype(np.int32),
            "position": table["start"].to_numpy() + table["peak"].to_numpy(),
            "token_ids": pyarrow.nulls(len(table), CONTEXTS.columns["token_ids"].type),
        }
    )
