"""Columns of `features.parquet` from what dashboards of other tools say of features."""

from math import isfinite
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sae.atlas import FEATURES, columns_of, flat_and_ends, list_array, list_lengths
from sae.atlas.directions import logit_agreement, word_numbers
from sae.base import require

if TYPE_CHECKING:
    import pyarrow

_BINS = 50
_HIGHEST, _MOST_TOKENS = 1e38, 1 << 53
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
        n_rows: tokens that were read, if that is known.
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
        columns |= _logits(rows, "top_logit_tokens", "top_logits")
        columns |= _logits(rows, "bottom_logit_tokens", "bottom_logits")
        columns |= FEATURES.nothing(n, ["logit_agreement"])
    return FEATURES.table(FEATURES.nothing(n) | columns)


def _pairs(
    rows: "pyarrow.Table", names: str, values: str
) -> list[list[tuple[str | int, float]]]:
    """Return what two lists of each row say side by side, where that is a finite number."""
    return [
        [
            (name, value)
            for name, value in zip(named or [], beside or [], strict=True)
            if name is not None and value is not None and isfinite(value)
        ]
        for named, beside in zip(rows[names].to_pylist(), rows[values].to_pylist(), strict=True)
    ]


def _logits(rows: "pyarrow.Table", tokens: str, values: str) -> dict[str, object]:
    """Return tokens and their logits, none where there were none."""
    pairs = _pairs(rows, tokens, values)
    return {
        tokens: [[text for text, _ in each] for each in pairs],
        values: [[value for _, value in each] for each in pairs],
    }


def _histograms(
    rows: "pyarrow.Table", in_contexts: NDArray[np.float64]
) -> tuple[NDArray[np.float64], list[NDArray[np.int64]]]:
    """The highest activations, and counts in equal parts of the way up to them.

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
                f"feature {i} has a histogram with a bar that counts nothing, or is nowhere",
            )
            width = middle[1] - middle[0] if len(middle) > 1 else 0.0
            if highest[i] <= 0:
                highest[i] = middle[-1] + width / 2
            places = np.floor(middle / max(highest[i], 1e-30) * most)
            np.add.at(
                histogram, np.clip(places, 0, most - 1).astype(int), np.rint(height).astype(int)
            )
        found.append(histogram)
    return highest, found


def _others(rows: "pyarrow.Table", names: str, values: str) -> dict[str, object]:
    """Return lists of other features that are there, and of what stands beside them."""
    n, kept_names, kept_values = len(rows), [], []
    for i, each in enumerate(_pairs(rows, names, values)):
        known = [(int(other), value) for other, value in each if int(other) < n]
        low = min((other for other, _ in known), default=0)
        require(low >= 0, f"feature {i} names feature {low}, and there is none below 0")
        kept_names.append([other for other, _ in known])
        kept_values.append([value for _, value in known])
    return {names: kept_names, values: kept_values}


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


def with_own_scale(
    features: "pyarrow.Table", norms: NDArray[np.float32]
) -> dict[str, "pyarrow.Array"]:
    """Return the columns of a dictionary whose norms had been folded, in its own scale.

    Args:
        features: a table of `feature_table`.
        norms: (d_sae,), as `sae.exchange.dashboards.rows.unit_norms` gives them.
    """
    columns = columns_of(features)
    columns["max_activation"] = features["max_activation"].to_numpy() / norms
    for name in ("top_logits", "bottom_logits"):
        if name in columns:
            columns[name] = _scaled(features, name, norms)
    return columns


def contexts_with_own_scale(
    contexts: "pyarrow.Table", norms: NDArray[np.float32]
) -> dict[str, "pyarrow.Array"]:
    """Return the columns of contexts as `with_own_scale` does those of features."""
    factors = 1 / norms.astype(np.float64)[contexts["feature"].to_numpy()]
    activation = (contexts["activation"].to_numpy() * factors).astype(np.float32)
    return columns_of(contexts) | {
        "activation": activation,
        "activations": _scaled(contexts, "activations", factors),
    }


def _scaled(
    table: "pyarrow.Table", name: str, factors: NDArray[np.floating]
) -> "pyarrow.ListArray":
    """Return a column of lists of numbers, each list multiplied by a factor."""
    lengths = list_lengths(table, name)
    flat = flat_and_ends(table, name)[0].to_numpy() * np.repeat(factors, lengths)
    return list_array(flat.astype(np.float32), lengths)


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
