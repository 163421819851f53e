"""An atlas as the rows that other tools' dashboards are made of, some features at a time.

SAEDashboard's `batch-N.json` and Neuronpedia's tables name most things alike, in SAEDashboard's
words (`sae_dashboard/neuronpedia/neuronpedia_dashboard.py`, version 0.8). Two things differ
from what SAEDashboard writes: numbers are not rounded, and the density is the measured one, not
read back from the title of a chart. Token strings are as there: plain text, spaces and line
ends as such.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from sae.atlas import AtlasRecord, Labels, flat_and_ends
from sae.base import progress, require, seal
from sae.run import lock_of, new_folder

if TYPE_CHECKING:
    import pyarrow

_Moments = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Mean and mean square of every feature over all tokens, silent ones too."""
N_ALIGNED = 3
"""Neurons that a feature's direction is largest on: rows of that table in SAEDashboard."""
TOP = -1
"""`bin_min` and `bin_contains` of the strongest contexts, as SAEDashboard marks them."""
_LISTS = {
    "correlated_features_indices": "correlated",
    "correlated_features_pearson": "correlations",
    "neg_str": "bottom_logit_tokens",
    "neg_values": "bottom_logits",
    "pos_str": "top_logit_tokens",
    "pos_values": "top_logits",
}
"""Columns of lists by the words for them."""
_WORDS = (
    "neuron_alignment_indices",
    "neuron_alignment_values",
    "neuron_alignment_l1",
    "correlated_neurons_indices",
    "correlated_neurons_l1",
    "correlated_neurons_pearson",
    "correlated_features_indices",
    "correlated_features_l1",
    "correlated_features_pearson",
    "neg_str",
    "neg_values",
    "pos_str",
    "pos_values",
    "frac_nonzero",
    "freq_hist_data_bar_values",
    "freq_hist_data_bar_heights",
    "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values",
)
"""What SAEDashboard and Neuronpedia both have of a feature, in their order."""


def alignment(w_dec: Float[torch.Tensor, "d_sae d_out"]) -> dict[str, NDArray[np.generic]]:
    """Return the neurons that decoder directions are largest on, (d_sae, N_ALIGNED) each.

    These are their numbers, the values there, and the magnitudes of these as shares of all.
    """
    rows = w_dec.detach().float().cpu()
    best = rows.topk(min(N_ALIGNED, rows.shape[1]), dim=1)
    shares = best.values.abs() / rows.abs().sum(1, keepdim=True).clamp_min(1e-30)
    parts = (best.indices.numpy(), best.values.numpy(), shares.numpy())
    return dict(zip(_WORDS[:3], parts, strict=True))


@dataclass(frozen=True, slots=True)
class Exported:
    """An atlas in the scale in which another tool shows it."""

    record: AtlasRecord
    """The record of the atlas, whose `folded` is that of what is written."""
    features: "pyarrow.Table"
    contexts: Iterable["pyarrow.Table"]
    """Pieces of `contexts.parquet`, sorted by feature; read once, from the first on."""
    labels: Labels
    aligned: Mapping[str, NDArray[np.generic]]
    """The `alignment` of what features add; empty without the dictionary."""


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


def write_features(
    atlas: Exported,
    folder: Path,
    size: int,
    files: Callable[[int, list[Dashboard]], Iterable[tuple[str, bytes]]],
    heads: Mapping[str, bytes] | None = None,
    *,
    sealed: bool = False,
) -> None:
    """Write a new folder, `size` features at a time.

    Names and contents come from `files`, given a block's number and features; `heads` stand
    beside them. Where it is `sealed`, for a folder that is read again, digests of all are too.

    Raises:
        UserError: if the folder exists, or another process writes it.
    """
    with (
        new_folder(folder, lock_of("atlas", folder)) as temporary,
        progress(len(atlas.features), "export", "feature") as bar,
    ):
        for name, content in (heads or {}).items():
            (temporary / name).write_bytes(content)
        for number, block in enumerate(dashboards(atlas, size)):
            for name, content in files(number, block):
                path = temporary / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
            bar.update(len(block))
        if sealed:
            seal(temporary)


def dashboards(atlas: Exported, size: int) -> Iterator[list[Dashboard]]:
    """Yield every feature in order, `size` of them at a time.

    Contexts in which a feature is silent are left out: these formats have no place for them.

    Raises:
        UserError: if the contexts are not sorted by feature.
    """
    moments = _moments(atlas.features)
    pieces = _by_feature(atlas.contexts, len(atlas.features), size)
    for first, contexts in zip(range(0, len(atlas.features), size), pieces, strict=True):
        table = atlas.features.slice(first, size).combine_chunks()
        shown = _shown(table, contexts, first, atlas.record.n_bands)
        yield _block(atlas, table, shown, moments, first)


def _by_feature(
    tables: Iterable["pyarrow.Table"], n: int, size: int
) -> Iterator["pyarrow.Table | None"]:
    """Tables of the contexts of `size` features each; None where there are none."""
    import pyarrow

    held: list[pyarrow.Table] = []
    source, last = filter(len, tables), -1
    for stop in range(size, n + size, size):
        while not held or held[-1]["feature"][-1].as_py() < stop:
            piece = next(source, None)
            if piece is None:
                break
            owners = piece["feature"].to_numpy()
            require(
                owners[0] >= last and bool((np.diff(owners) >= 0).all()),
                "contexts.parquet is not sorted by feature; run sae analyze again",
            )
            last = int(owners[-1])
            held.append(piece)
        if not held:
            yield None
            continue
        table = pyarrow.concat_tables(held).combine_chunks()
        end = int(np.searchsorted(table["feature"].to_numpy(), stop))
        held = [table.slice(end)] if end < len(table) else []
        yield table.slice(0, end)


def _lists(table: "pyarrow.Table", name: str) -> list[Any]:
    """Return a column's lists, arrays of numbers or lists of texts; empty if there is none."""
    import pyarrow
    import pyarrow.compute as pc

    if name not in table.column_names:
        return [[]] * len(table)
    flat, ends = flat_and_ends(table, name)
    values: Any
    if pyarrow.types.is_string(flat.type):
        # The databases behind these formats cannot store the character zero.
        values = pc.replace_substring(flat, "\x00", "\ufffd").to_pylist()
    else:
        values = flat.to_numpy(zero_copy_only=False)
    starts = [0, *ends[:-1].tolist()]
    return [values[start:end] for start, end in zip(starts, ends.tolist(), strict=True)]


def _moments(features: "pyarrow.Table") -> _Moments:
    density, mean, std = (
        features[name].to_numpy().astype(np.float64)
        for name in ("density", "mean_activation", "std_activation")
    )
    return density * mean, density * (mean**2 + std**2)


def _cosines(
    feature: int,
    others: NDArray[np.int32],
    correlations: NDArray[np.float32],
    moments: _Moments,
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
    total = int(histogram.sum()) if len(histogram) else 0
    if not total:
        return [None] * n_bands
    bands = (2 * np.arange(len(histogram)) + 1) * n_bands // (2 * len(histogram))
    shares = np.bincount(bands, histogram, n_bands) / total * density
    shares[0] += 1 - density
    return list(shares.tolist())


def _shown(
    table: "pyarrow.Table", contexts: "pyarrow.Table | None", first: int, n_bands: int
) -> list[list[Shown]]:
    """Return the contexts of each feature of a block, in order, without the silent ones."""
    found: list[list[Shown]] = [[] for _ in range(len(table))]
    if contexts is None:
        return found
    highest = table["max_activation"].to_pylist()
    histograms = zip(_lists(table, "histogram"), table["density"].to_pylist(), strict=True)
    shares = [_shares(histogram, density, n_bands) for histogram, density in histograms]
    names = ("feature", "group", "band", "sequence", "position", "start")
    columns = [contexts[name].to_pylist() for name in names]
    columns += [_lists(contexts, name) for name in ("tokens", "activations")]
    rows = zip(*columns, strict=True)
    for feature, group, band, sequence, position, start, tokens, values in rows:
        if group == "silent":
            continue
        owner = feature - first
        most = highest[owner]
        edges: tuple[float, float, float | None] = (TOP, most, TOP)
        if group == "band":
            low, high = band * most / n_bands, (band + 1) * most / n_bands
            edges = (low, high, shares[owner][band])
        found[owner].append(Shown(*edges, tokens, values, position - start, sequence, start))
    return found


def _block(
    atlas: Exported,
    table: "pyarrow.Table",
    shown: list[list[Shown]],
    moments: _Moments,
    first: int,
) -> list[Dashboard]:
    lists = {word: _lists(table, name) for word, name in _LISTS.items()}
    names = ("neighbours", "neighbour_cosines", "histogram")
    near, cosines, histograms = (_lists(table, name) for name in names)
    numbers = ("density", "max_activation", "map_x", "map_y")
    rows = zip(*(table[name].to_pylist() for name in numbers), strict=True)
    found = []
    for i, (density, highest, x, y) in enumerate(rows):
        fields = {key: [] for key in _WORDS} | {word: lists[word][i] for word in _LISTS}
        fields |= {word: values[first + i] for word, values in atlas.aligned.items()}
        fields["frac_nonzero"] = density
        others = fields["correlated_features_indices"]
        if len(others):
            r = fields["correlated_features_pearson"]
            fields["correlated_features_l1"] = _cosines(first + i, others, r, moments)
        if density > 0:
            bars = fields["freq_hist_data_bar_heights"] = histograms[i]
            width = highest / max(1, len(bars))
            fields["freq_hist_data_bar_values"] = (np.arange(len(bars)) + 0.5) * width
        place = None if x is None or not np.isfinite(x + y) else (x, y)
        own = (near[i], cosines[i], place, shown[i])
        found.append(Dashboard(first + i, highest, fields, *own))
    return found


def json_bytes(value: object) -> bytes:
    """Return JSON: float32 as the shortest decimal that reads back the same, NaN as null."""
    import orjson

    found: bytes = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return found
