"""Columns of `features.parquet` from what dashboards of other tools say of features."""

from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae.base.errors import require
from sae.exchange.dashboards.parts import lengths

_BINS = 50
_HIGHEST, _MOST_TOKENS = 1e38, 1 << 53
_ROUNDING = 1.01e-5
"""SAEDashboard reads densities back from titles, to five digits behind the point."""


def finished(rows: Any, in_contexts: NDArray[np.float64], n_rows: int | None) -> Any:
    """The columns that there are, in the order of `features.parquet`.

    Logits are left out where no feature has any.

    Args:
        rows: a row a feature, in their order; null where no file has the feature.
        in_contexts: (d_sae,): the highest activation in a feature's contexts, −inf for none.
        n_rows: tokens that were read, if that is known.
    """
    import pyarrow as pa

    n = len(rows)
    density = np.nan_to_num(rows["density"].to_numpy())
    highest, histogram = _histograms(rows, in_contexts)
    counts = np.array([int(bars.sum()) for bars in histogram], dtype=np.int64)
    if n_rows:
        exact = counts / n_rows
        density = np.where((counts > 0) & (abs(exact - density) <= _ROUNDING), exact, density)
    counts = np.where(counts > 0, counts, np.rint(density * (n_rows or 0)).astype(np.int64))
    uncounted = (counts == 0) & (density > 0)
    highest = np.where(density > 0, highest, 0)
    columns: dict[str, Any] = {
        "feature": pa.array(np.arange(n), pa.int32()),
        "density": density,
        "n_active": pa.array(counts, pa.int64(), mask=uncounted),
        "max_activation": pa.array(highest, pa.float32()),
        "mean_activation": pa.nulls(n, pa.float64()),
        "std_activation": pa.nulls(n, pa.float64()),
        "histogram": pa.array(histogram, pa.list_(pa.int64())),
        **_unknown(n),
        **_others(rows, "neighbours", "neighbour_cosines"),
        **_others(rows, "correlated", "correlations"),
        **{
            name: _empty(n, kind)
            for name, kind in (
                ("coactive", pa.int32()),
                ("coactive_counts", pa.int64()),
                ("coactive_jaccard", pa.float32()),
            )
        },
    }
    if len(rows["top_logit_tokens"].combine_chunks().flatten()):
        columns |= _logits(rows, "top_logit_tokens", "top_logits")
        columns |= _logits(rows, "bottom_logit_tokens", "bottom_logits")
    return pa.table(columns | _map(rows, density))


def _unknown(n: int) -> dict[str, Any]:
    """What these formats do not hold."""
    import pyarrow as pa

    return {
        "positions": _empty(n, pa.int64()),
        "n_documents": pa.nulls(n, pa.int64()),
        "top_document_share": pa.nulls(n, pa.float32()),
        "top_token_ids": _empty(n, pa.int32()),
        "top_tokens": _empty(n, pa.string()),
        "top_token_counts": _empty(n, pa.int64()),
        "top_token_rates": _empty(n, pa.float32()),
        "decoder_norm": pa.nulls(n, pa.float32()),
        "encoder_norm": pa.nulls(n, pa.float32()),
    }


def _empty(n: int, kind: Any) -> Any:
    import pyarrow as pa

    return pa.array([[]] * n, pa.list_(kind))


def _known(rows: Any, names: str, values: str) -> list[list[tuple[Any, float]]]:
    """What two lists of each row say side by side, without what is null or no finite number."""
    return [
        [
            (name, value)
            for name, value in zip(named or [], beside or [], strict=True)
            if name is not None and value is not None and isfinite(value)
        ]
        for named, beside in zip(rows[names].to_pylist(), rows[values].to_pylist(), strict=True)
    ]


def _logits(rows: Any, tokens: str, values: str) -> dict[str, Any]:
    """Tokens and their logits, none where there were none."""
    import pyarrow as pa

    pairs = _known(rows, tokens, values)
    return {
        tokens: pa.array([[text for text, _ in each] for each in pairs], rows[tokens].type),
        values: pa.array([[value for _, value in each] for each in pairs], rows[values].type),
    }


def _histograms(
    rows: Any, in_contexts: NDArray[np.float64]
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


def _others(rows: Any, names: str, values: str) -> dict[str, Any]:
    """Lists of other features and of what stands beside them, without those not there."""
    import pyarrow as pa

    n, kept_names, kept_values = len(rows), [], []
    for i, each in enumerate(_known(rows, names, values)):
        known = [(other, value) for other, value in each if other < n]
        low = min((other for other, _ in known), default=0)
        require(low >= 0, f"feature {i} names feature {low}, and there is none below 0")
        kept_names.append([other for other, _ in known])
        kept_values.append([value for _, value in known])
    return {
        names: pa.array(kept_names, pa.list_(pa.int32())),
        values: pa.array(kept_values, pa.list_(pa.float32())),
    }


def _map(rows: Any, density: NDArray[np.float64]) -> dict[str, Any]:
    """Places on the map, within 0..1; null if a feature that fires has none."""
    import pyarrow as pa

    x, y = (rows[name].to_numpy().astype(np.float64) for name in ("map_x", "map_y"))
    there = (abs(x) < _HIGHEST) & (abs(y) < _HIGHEST)
    if not there.any() or not there[density > 0].all():
        return {name: pa.nulls(len(rows), pa.float32()) for name in ("map_x", "map_y")}
    places = {}
    for name, values in (("map_x", x), ("map_y", y)):
        low, high = values[there].min(), values[there].max()
        inside = values if low >= 0 and high <= 1 else (values - low) / max(high - low, 1e-30)
        places[name] = pa.array(np.where(there, inside, 0.5), pa.float32())
    return places


def with_own_scale(features: Any, norms: NDArray[np.float32]) -> Any:
    """Activations and logits of a dictionary whose norms had been folded.

    Args:
        features: a table of `finished`.
        norms: (d_sae,), as `sae.exchange.dashboards.rows.unit_norms` gives them.
    """
    highest = features["max_activation"].to_numpy() / norms
    place = features.column_names.index("max_activation")
    features = features.set_column(place, "max_activation", [highest])
    for name in ("top_logits", "bottom_logits"):
        if name in features.column_names:
            features = _scaled(features, name, norms)
    return features


def contexts_with_own_scale(contexts: Any, norms: NDArray[np.float32]) -> Any:
    """As `with_own_scale`, for a table of contexts."""
    factors = 1 / norms.astype(np.float64)[contexts["feature"].to_numpy()]
    activation = (contexts["activation"].to_numpy() * factors).astype(np.float32)
    place = contexts.column_names.index("activation")
    contexts = contexts.set_column(place, "activation", [activation])
    return _scaled(contexts, "activations", factors)


def _scaled(table: Any, name: str, factors: NDArray[Any]) -> Any:
    """A table whose lists of one column are multiplied by a number each."""
    import pyarrow as pa

    column = table[name].combine_chunks()
    each = np.repeat(factors, lengths(table, name))
    flat = (column.flatten().to_numpy() * each).astype(np.float32)
    scaled = pa.ListArray.from_arrays(column.offsets, pa.array(flat))
    return table.set_column(table.column_names.index(name), name, scaled)


def agreement(features: Any, contexts: Any, found: NDArray[np.float64]) -> None:
    """Put into `found` the share of top contexts that a feature's promoted tokens speak of.

    As `sae.analysis.tables.logit_agreement`, by texts: a context counts when the token at its
    peak, or the one after, is among the promoted ones, letter case and spaces aside.

    Args:
        features: the table of all features.
        contexts: a table of some features' contexts, sorted.
    """
    owners, groups, positions, starts = (
        contexts[name].to_pylist() for name in ("feature", "group", "position", "start")
    )
    total: dict[int, list[int]] = {}
    promoted: dict[int, set[str]] = {}
    tokens = contexts["tokens"]
    for row, (owner, group) in enumerate(zip(owners, groups, strict=True)):
        if group != "top":
            continue
        if owner not in promoted:
            texts = features["top_logit_tokens"][owner].as_py()
            promoted[owner] = {text.strip().lower() for text in texts}
            total[owner] = [0, 0]
        peak = positions[row] - starts[row]
        near = {text.strip().lower() for text in tokens[row].as_py()[peak : peak + 2]}
        total[owner][0] += bool(near & promoted[owner])
        total[owner][1] += 1
    for owner, (agreeing, all_of_them) in total.items():
        found[owner] = agreeing / all_of_them
