"""The columns of an atlas's two tables, from what dashboards of other tools say.

SAEDashboard and Neuronpedia fold the norms of decoder rows into the encoder before they look
(SAELens's `fold_W_dec_norm`), so that activations are those of unit directions and logits are a
unit direction's; `rescaled` goes there and back.
"""

import re
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sae.atlas import (
    CONTEXTS,
    FEATURES,
    GROUPS,
    columns_of,
    flat_and_ends,
    list_array,
    list_lengths,
)
from sae.atlas.directions import logit_agreement, word_numbers
from sae.base import UserError, require
from sae.exchange.dashboards.files import Row, check_lengths, column, feature_number

if TYPE_CHECKING:
    import pyarrow

_NUMBERS = ("max_activation", "activation")
_ACTIVATIONS = (*_NUMBERS, "activations")
_LOGITS = ("top_logits", "bottom_logits")
_BINS = 50
_HIGHEST, _MOST_TOKENS = 1e38, 1 << 53
_PLACE = re.compile(r"(\d{1,15}):(\d{1,9})")
_ROUNDING = 1.01e-5
"""SAEDashboard reads densities back from titles, to five digits behind the point."""


def feature_table(
    rows: "pyarrow.Table", in_contexts: NDArray[np.float64], n_rows: int | None
) -> "pyarrow.Table":
    """Return the table of an atlas's features, empty where nothing is known.

    Logits are left out where no feature has any; labels and agreement come later.

    Args:
        rows: a row a feature, in their order; null where no file has the feature.
        in_contexts: (d_sae,): the highest activation in a feature's contexts, −inf for none.
    """
    import pyarrow

    n = len(rows)
    density = np.nan_to_num(rows["density"].to_numpy())
    highest, histogram = _histograms(rows, in_contexts)
    counts = np.array([int(bars.sum()) for bars in histogram], dtype=np.int64)
    if n_rows:
        exact = counts / n_rows
        density = np.where((counts > 0) & (abs(exact - density) <= _ROUNDING), exact, density)
    counts = np.where(counts > 0, counts, np.rint(density * (n_rows or 0)).astype(np.int64))
    columns: dict[str, object] = {
        "feature": np.arange(n, dtype=np.int32),
        "density": density,
        "n_active": pyarrow.array(counts, mask=(counts == 0) & (density > 0)),
        "max_activation": np.where(density > 0, highest, 0).astype(np.float32),
        "histogram": histogram,
        **_others(rows, "neighbours", "neighbour_cosines"),
        **_others(rows, "correlated", "correlations"),
        **_map(rows, density),
    }
    if len(flat_and_ends(rows, "top_logit_tokens")[0]):
        columns |= _pairs(rows, "top_logit_tokens", "top_logits")
        columns |= _pairs(rows, "bottom_logit_tokens", "bottom_logits")
        columns |= FEATURES.nothing(n, ["logit_agreement"])
    return FEATURES.table(FEATURES.nothing(n) | columns)


def _pairs(rows: "pyarrow.Table", names: str, values: str) -> dict[str, list[list[Any]]]:
    """Two columns of lists side by side, without what is not known or is no feature here."""
    columns = zip(rows[names].to_pylist(), rows[values].to_pylist(), strict=True)
    pairs = [
        [
            (name, value)
            for name, value in zip(named or [], beside or [], strict=True)
            if name is not None and value is not None and isfinite(value)
            if isinstance(name, str) or name < len(rows)
        ]
        for named, beside in columns
    ]
    return {
        names: [[name for name, _ in each] for each in pairs],
        values: [[value for _, value in each] for each in pairs],
    }


def _histograms(
    rows: "pyarrow.Table", in_contexts: NDArray[np.float64]
) -> tuple[NDArray[np.float64], list[NDArray[np.int64]]]:
    """Return the highest activations, and counts in equal parts of the way up to them.

    Others' bars begin at the lowest activation that there was: each goes where its middle is.
    """
    said = np.nan_to_num(rows["highest"].to_numpy())
    highest = np.where(said > 0, said, np.where(np.isfinite(in_contexts), in_contexts, 0))
    heights, bars = (rows[name].to_pylist() for name in ("heights", "bars"))
    most = max((len(each) for each in heights if each), default=_BINS)
    found = []
    for i, (counts, middles) in enumerate(zip(heights, bars, strict=True)):
        histogram = np.zeros(most, np.int64)
        if counts:
            middle, height = np.array(middles, np.float64), np.array(counts, np.float64)
            good = (abs(middle) < _HIGHEST).all() and height.min() >= 0
            require(
                bool(good and height.sum() < _MOST_TOKENS),
                f"feature {i} has a histogram with a bar without a count or without a place",
            )
            width = middle[1] - middle[0] if len(middle) > 1 else 0.0
            if highest[i] <= 0:
                highest[i] = middle[-1] + width / 2
            places = np.floor(middle / max(highest[i], 1e-30) * most)
            places = np.clip(places, 0, most - 1).astype(int)
            np.add.at(histogram, places, np.rint(height).astype(int))
        found.append(histogram)
    return highest, found


def _others(rows: "pyarrow.Table", names: str, values: str) -> dict[str, list[list[Any]]]:
    found = _pairs(rows, names, values)
    for i, others in enumerate(found[names]):
        low = min(others, default=0)
        require(
            low >= 0, f"feature {i} names feature {low}, but numbers of features begin at 0"
        )
    return found


def _map(rows: "pyarrow.Table", density: NDArray[np.float64]) -> dict[str, object]:
    """Return places on the map, within 0..1; null if a feature that fires has none."""
    x, y = (rows[name].to_numpy().astype(np.float64) for name in ("map_x", "map_y"))
    there = (abs(x) < _HIGHEST) & (abs(y) < _HIGHEST)
    if not there.any() or not there[density > 0].all():
        return {}
    places: dict[str, object] = {}
    for name, values in (("map_x", x), ("map_y", y)):
        low, high = values[there].min(), values[there].max()
        inside = values if low >= 0 and high <= 1 else (values - low) / max(high - low, 1e-30)
        places[name] = np.where(there, inside, 0.5).astype(np.float32)
    return places


def agreement_of_texts(
    features: "pyarrow.Table", contexts: "pyarrow.Table"
) -> NDArray[np.float64]:
    """Return the `logit_agreement` of features whose contexts are known by their texts."""
    import pyarrow
    import pyarrow.compute as pc

    contexts = contexts.filter(pc.equal(contexts["group"], "top"))
    tokens, ends = flat_and_ends(contexts, "tokens")
    starts = ends - list_lengths(contexts, "tokens")
    peaks = starts + contexts["position"].to_numpy() - contexts["start"].to_numpy()
    after = np.minimum(peaks + 1, ends - 1)
    texts, _ = flat_and_ends(features, "top_logit_tokens")
    near = [tokens.take(pyarrow.array(places)) for places in (peaks, after)]
    encoded = pc.dictionary_encode(pyarrow.concat_arrays([texts, *near]))
    words = word_numbers(encoded.dictionary.to_pylist())[encoded.indices.to_numpy()]
    lengths = list_lengths(features, "top_logit_tokens")
    promoted = np.full((len(features), int(lengths.max())), -1)
    promoted[np.arange(promoted.shape[1]) < lengths[:, None]] = words[: len(texts)]
    beside = words[len(texts) :].reshape(2, -1).T.copy()
    beside[after == peaks, 1] = -2
    return logit_agreement(promoted, contexts["feature"].to_numpy(), beside)


def context_rows(rows: list[Row], path: Path) -> "pyarrow.Table":
    """Return contexts as they came, in Neuronpedia's words, with the `highest` of each.

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
    """Find the place a context was chosen for; SAEDashboard's may lie before the first."""
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
    """Return tables of `context_rows` as one of an atlas, by feature, group and rank.

    Ids of tokens are null, for no dashboard holds them.
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


def unit_norms(norms: NDArray[np.float32], architecture: str | None) -> NDArray[np.float32]:
    """Return what activations are multiplied by so that decoder directions have norm one.

    That is one for norms that are not known (NaN) or hardly differ from one; and for top-k,
    whose latents would be others: SAELens folds nothing there.
    """
    plain = ~(norms > 0) | (np.abs(norms - 1) < 1e-5) | (architecture == "topk")
    return np.where(plain, np.float32(1), norms)


def rescaled(
    table: "pyarrow.Table", norms: NDArray[np.float32], *, fold: bool
) -> dict[str, "pyarrow.Array"]:
    """Return the columns of features or contexts, with norms folded in or taken out again.

    To fold is to multiply activations by the norms that `unit_norms` gives, and divide logits.
    """
    columns, own = columns_of(table), norms[table["feature"].to_numpy()]
    for name in columns.keys() & {*_ACTIVATIONS, *_LOGITS}:
        scale = np.multiply if fold == (name in _ACTIVATIONS) else np.divide
        if name in _NUMBERS:
            columns[name] = scale(table[name].to_numpy(), own)
        else:
            flat, lengths = flat_and_ends(table, name)[0], list_lengths(table, name)
            columns[name] = list_array(scale(flat.to_numpy(), np.repeat(own, lengths)), lengths)
    return columns
