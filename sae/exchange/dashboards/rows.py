"""An atlas as the rows that other tools' dashboards are made of, some features at a time.

SAEDashboard's `batch-N.json` and Neuronpedia's tables name most things alike, in SAEDashboard's
words (`sae_dashboard/neuronpedia/neuronpedia_dashboard.py`, version 0.8). Two things differ
from what SAEDashboard writes: numbers are not rounded, and the density is the measured one, not
read back from the title of a chart. Token strings are as there: plain text, spaces and line
ends as such.

These tools fold the norms of decoder rows into the encoder before they look (SAELens's
`fold_W_dec_norm`), so that activations are those of unit directions and logits are a unit
direction's. So are these, unless the norms are given as ones.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from sae.atlas import AtlasRecord, Labels, flat_and_ends
from sae.base import require

if TYPE_CHECKING:
    import pyarrow

N_ALIGNED = 3
"""Neurons that a feature's direction is largest on: rows of that table in SAEDashboard."""
TOP = -1
"""`bin_min` and `bin_contains` of the strongest contexts, as SAEDashboard marks them."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """Where a feature's decoder direction is largest, (d_sae, N_ALIGNED) each."""

    indices: NDArray[np.int64]
    values: NDArray[np.float32]
    shares: NDArray[np.float32]
    """Magnitudes of these values as shares of the sum of all magnitudes."""


def alignment(w_dec: Float[torch.Tensor, "d_sae d_out"]) -> Alignment:
    """The neurons that decoder directions are largest on.

    Args:
        w_dec: (d_sae, d_out).
    """
    rows = w_dec.detach().float().cpu()
    best = rows.topk(min(N_ALIGNED, rows.shape[1]), dim=1)
    shares = best.values.abs() / rows.abs().sum(1, keepdim=True).clamp_min(1e-30)
    return Alignment(best.indices.numpy(), best.values.numpy(), shares.numpy())


@dataclass(frozen=True, slots=True)
class Exported:
    """An atlas in the scale in which another tool shows it."""

    record: AtlasRecord
    """The record of the atlas, whose `folded` is that of what is written."""
    features: "pyarrow.Table"
    """The table of `features.parquet`."""
    contexts: Iterable["pyarrow.RecordBatch"]
    """Record batches of `contexts.parquet`, sorted by feature; read once, from the first on."""
    labels: Labels
    norms: NDArray[np.float32]
    """(d_sae,): what activations are multiplied by and logits divided by; see `unit_norms`."""
    aligned: Alignment | None
    """Alignment of unit directions if norms are folded; None without the dictionary."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A context of a dashboard."""

    bin_min: float
    bin_max: float
    bin_contains: float | None
    """Share of all tokens whose activation is within; of the lowest bin, silence too."""
    tokens: list[str]
    values: NDArray[np.float32]
    peak: int
    """Place of the token that the context was chosen for."""
    sequence: int
    start: int
    """Position of the first token in its sequence."""


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One feature."""

    feature: int
    highest: float
    fields: dict[str, Any]
    """By the names that SAEDashboard and Neuronpedia share."""
    neighbours: NDArray[np.int32]
    cosines: NDArray[np.float32]
    place: tuple[float, float] | None
    """On the map."""
    contexts: list[Shown]


def unit_norms(norms: NDArray[np.float32], architecture: str | None) -> NDArray[np.float32]:
    """What activations are multiplied by so that decoder directions have norm one.

    Ones for norms that are not known or hardly differ from one; and for top-k, whose latents
    would be others: SAELens folds nothing there.

    Args:
        norms: of the decoder's rows, (d_sae,); NaN where not known.
    """
    plain = ~(norms > 0) | (np.abs(norms - 1) < 1e-5)
    one = np.float32(1)
    return np.where(plain | (architecture == "topk"), one, norms).astype(np.float32)


def dashboards(atlas: Exported, size: int) -> Iterator[list[Dashboard]]:
    """Every feature in order, `size` of them at a time.

    Contexts in which a feature is silent are left out: these formats have no place for them.

    Raises:
        UserError: if the contexts are not sorted by feature.
    """
    moments = _moments(atlas.features)
    pieces = _by_feature(atlas.contexts, len(atlas.features), size)
    for first, contexts in zip(range(0, len(atlas.features), size), pieces, strict=True):
        table = atlas.features.slice(first, size).combine_chunks()
        shown = _shown(atlas, table, contexts, first)
        yield _block(atlas, table, shown, moments, first)


def _by_feature(
    batches: Iterable["pyarrow.RecordBatch"], n: int, size: int
) -> Iterator["pyarrow.Table | None"]:
    """Tables of the contexts of `size` features each; None where there are none."""
    import pyarrow

    held: list[pyarrow.RecordBatch] = []
    source, last = iter(batches), -1
    for stop in range(size, n + size, size):
        while not held or held[-1]["feature"][-1].as_py() < stop:
            batch = next(source, None)
            if batch is None:
                break
            if not len(batch):
                continue
            owners = batch["feature"].to_numpy()
            require(
                owners[0] >= last and bool((np.diff(owners) >= 0).all()),
                "contexts.parquet is not sorted by feature; run sae analyze again",
            )
            last = int(owners[-1])
            held.append(batch)
        if not held:
            yield None
            continue
        table = pyarrow.Table.from_batches(held).combine_chunks()
        end = int(np.searchsorted(table["feature"].to_numpy(), stop))
        held = table.slice(end).to_batches() if end < len(table) else []
        yield table.slice(0, end)


def pieces(table: "pyarrow.Table", name: str) -> list[Any]:
    """The lists of a column, arrays of numbers or lists of texts; empty where there is none."""
    import pyarrow
    import pyarrow.compute as pc

    if name not in table.column_names:
        return [np.zeros(0, np.float32)] * len(table)
    flat, ends = flat_and_ends(table, name)
    values: Any
    if pyarrow.types.is_string(flat.type):
        # The databases behind these formats cannot store the character zero.
        values = pc.replace_substring(flat, "\x00", "\ufffd").to_pylist()
    else:
        values = flat.to_numpy(zero_copy_only=False)
    starts = [0, *ends[:-1].tolist()]
    return [values[start:end] for start, end in zip(starts, ends.tolist(), strict=True)]


def _moments(features: "pyarrow.Table") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and mean square of every feature over all tokens, silent ones too."""
    density, mean, std = (
        features[name].to_numpy().astype(np.float64)
        for name in ("density", "mean_activation", "std_activation")
    )
    return density * mean, density * (mean**2 + std**2)


def _cosines(
    feature: int,
    others: NDArray[np.int32],
    correlations: NDArray[np.float32],
    moments: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> NDArray[np.float32] | list[float]:
    """Cosines of activations over all tokens, from their correlations.

    With mean m and mean square q of a and b: (r √(q_a − m_a²) √(q_b − m_b²) + m_a m_b)
    / √(q_a q_b). That is what SAEDashboard puts into `correlated_features_l1`.
    """
    means, squares = moments
    m_a, q_a, m_b, q_b = means[feature], squares[feature], means[others], squares[others]
    spread = np.sqrt(np.maximum(0, q_a - m_a**2) * np.maximum(0, q_b - m_b**2))
    found = (correlations * spread + m_a * m_b) / np.sqrt(np.maximum(q_a * q_b, 1e-300))
    return found.astype(np.float32) if np.isfinite(found).all() else []


def _shares(histogram: NDArray[np.int64], density: float, n_bands: int) -> list[float | None]:
    """Share of all tokens in each of the equal parts of the way up to the highest."""
    total = int(histogram.sum()) if len(histogram) else 0
    if not total:
        return [None] * n_bands
    counts = np.zeros(n_bands)
    np.add.at(
        counts, (2 * np.arange(len(histogram)) + 1) * n_bands // (2 * len(histogram)), histogram
    )
    shares = counts / total * density
    shares[0] += 1 - density
    found: list[float | None] = shares.tolist()
    return found


def _shown(
    atlas: Exported, table: "pyarrow.Table", contexts: "pyarrow.Table | None", first: int
) -> list[list[Shown]]:
    """The contexts of each feature of a block, in their order, without the silent ones."""
    found: list[list[Shown]] = [[] for _ in range(len(table))]
    if contexts is None:
        return found
    n_bands = atlas.record.n_bands
    norms = atlas.norms[first : first + len(table)]
    highest = table["max_activation"].to_numpy() * norms
    shares = [
        _shares(histogram, density, n_bands)
        for histogram, density in zip(
            pieces(table, "histogram"), table["density"].to_pylist(), strict=True
        )
    ]
    names = ("feature", "group", "band", "sequence", "position", "start")
    columns = [contexts[name].to_pylist() for name in names]
    lists = pieces(contexts, "tokens"), pieces(contexts, "activations")
    for owner, group, band, sequence, position, start, tokens, values in zip(
        *columns, *lists, strict=True
    ):
        if group == "silent":
            continue
        most, own = float(highest[owner - first]), shares[owner - first]
        edges: tuple[float, float, float | None] = (TOP, most, TOP)
        if group == "band":
            edges = (band * most / n_bands, (band + 1) * most / n_bands, own[band])
        found[owner - first].append(
            Shown(
                *edges, tokens, values * norms[owner - first], position - start, sequence, start
            )
        )
    return found


def _block(
    atlas: Exported,
    table: "pyarrow.Table",
    shown: list[list[Shown]],
    moments: tuple[NDArray[np.float64], NDArray[np.float64]],
    first: int,
) -> list[Dashboard]:
    names = (
        "histogram",
        "correlated",
        "correlations",
        "neighbours",
        "neighbour_cosines",
        "top_logit_tokens",
        "top_logits",
        "bottom_logit_tokens",
        "bottom_logits",
    )
    lists = zip(*(pieces(table, name) for name in names), strict=True)
    density = table["density"].to_pylist()
    norms = atlas.norms[first : first + len(table)]
    highest = table["max_activation"].to_numpy() * norms
    x, y = (table[name].to_numpy() for name in ("map_x", "map_y"))
    found = []
    for i, (bars, others, r, near, cosines, top, ups, bottom, downs) in enumerate(lists):
        most = float(highest[i])
        live = density[i] > 0
        fields = {
            **_aligned(atlas.aligned, first + i),
            "correlated_neurons_indices": [],
            "correlated_neurons_l1": [],
            "correlated_neurons_pearson": [],
            "correlated_features_indices": others,
            "correlated_features_l1": _cosines(first + i, others, r, moments)
            if len(others)
            else [],
            "correlated_features_pearson": r,
            "neg_str": list(bottom),
            "neg_values": downs / norms[i],
            "pos_str": list(top),
            "pos_values": ups / norms[i],
            "frac_nonzero": density[i],
            "freq_hist_data_bar_values": _centres(len(bars), most) if live else [],
            "freq_hist_data_bar_heights": bars if live else [],
            "logits_hist_data_bar_heights": [],
            "logits_hist_data_bar_values": [],
        }
        place = (float(x[i]), float(y[i])) if np.isfinite(x[i] + y[i]) else None
        found.append(Dashboard(first + i, most, fields, near, cosines, place, shown[i]))
    return found


def _aligned(aligned: Alignment | None, feature: int) -> dict[str, object]:
    names = ("neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1")
    if aligned is None:
        return {name: [] for name in names}
    parts: tuple[NDArray[np.generic], ...] = (aligned.indices, aligned.values, aligned.shares)
    return {name: part[feature] for name, part in zip(names, parts, strict=True)}


def _centres(n_bars: int, highest: float) -> NDArray[np.float64]:
    """The middles of equal bars from 0 to the highest activation."""
    middles = np.arange(n_bars, dtype=np.float64) + 0.5
    found: NDArray[np.float64] = (middles * (highest / max(1, n_bars))).astype(np.float64)
    return found


def json_bytes(value: object) -> bytes:
    """As JSON: float32 as the shortest decimal that reads back the same, NaN as null."""
    import orjson

    found: bytes = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return found
