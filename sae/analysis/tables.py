"""The tables of an atlas: `features.parquet` and `contexts.parquet`, column by column."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sae.analysis.features import N_BANDS, ContextRule
from sae.analysis.shards import Text
from sae.analysis.work import Arrays, Work

GROUPS = ("top", "band", "silent")
_GROUP_FEATURES = 1024
"""Features whose contexts are a row group, at most, so that some can be read alone."""


class Vocabulary:
    """The text of token ids; of those that nothing asks for, nothing."""

    def __init__(self, ids: NDArray[np.int64], strings: Sequence[str]) -> None:
        """Take unique `ids` and their texts."""
        import pyarrow

        self._places = np.full(int(ids.max(initial=-1)) + 1, -1)
        self._places[ids] = np.arange(len(ids))
        self._strings = pyarrow.array(strings, pyarrow.string())

    def strings(self, ids: NDArray[Any]) -> Any:
        """An arrow array of texts, of ids of any shape."""
        return self._strings.take(self._places[ids.ravel()])

    def plain(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        """Numbers that are equal where texts are, letter case and spaces aside."""
        texts = [text.strip().lower() for text in self._strings.to_pylist()]
        numbers = np.unique(np.array(texts, dtype=object), return_inverse=True)[1]
        found: NDArray[np.int64] = numbers[self._places[ids]]
        return found


@dataclass(frozen=True, slots=True)
class LogitEffects:
    """Tokens that each feature's decoder direction pushes up and down, (d_sae, k) each."""

    top_values: NDArray[np.float32]
    top_ids: NDArray[np.int64]
    bottom_values: NDArray[np.float32]
    bottom_ids: NDArray[np.int64]
    sharpness: NDArray[np.float32]
    """(d_sae,): standard deviations between the mean top logit and the mean logit."""


def lists(values: Any, lengths: NDArray[np.int64] | int) -> Any:
    """An arrow array of lists: the flat `values`, cut into pieces of these lengths."""
    import pyarrow

    if isinstance(lengths, int):
        lengths = np.full(len(values) // max(1, lengths), lengths)
    ends = np.concatenate([[0], lengths.cumsum()])
    if not isinstance(values, pyarrow.Array):
        values = pyarrow.array(values)
    return pyarrow.ListArray.from_arrays(pyarrow.array(ends, pyarrow.int32()), values)


def _known(names: NDArray[np.int64], *columns: Any) -> list[Any]:
    """Lists of the names that are there (−1 is none), and of what stands beside them."""
    there = names >= 0
    lengths = there.sum(1)
    flat = [names[there].astype(np.int32), *(column[there] for column in columns)]
    return [lists(values, lengths) for values in flat]


def context_table(
    panel: Arrays, features: slice, rule: ContextRule, text: Text, vocabulary: Vocabulary
) -> Any:
    """Rows of `contexts.parquet` of a block of features, in their order.

    Args:
        panel: `chosen` and `activations` of the block, as `feature_panels` keeps them.
    """
    import pyarrow

    there = panel["chosen"] >= 0
    feature, slot = there.nonzero()
    token = panel["chosen"][there]
    position = token % text.context_size
    start = np.maximum(position - rule.radius, 0)
    length = np.minimum(position + rule.radius + 1, text.context_size) - start
    inside = np.arange(2 * rule.radius + 1) < length[:, None]
    first = token - position + start
    ids = text.tokens[(first[:, None] + np.arange(inside.shape[1]))[inside]]
    activations = panel["activations"][there]
    group, band, rank = _slots(rule)
    # The rank counts what was found: places in a group may be empty at the end alone.
    return pyarrow.table(
        {
            "feature": (feature + features.start).astype(np.int32),
            "group": pyarrow.array(GROUPS).take(group[slot]),
            "band": band[slot],
            "rank": rank[slot],
            "sequence": token // text.context_size,
            "position": position.astype(np.int32),
            "start": start.astype(np.int32),
            "activation": activations[np.arange(len(token)), position - start],
            "token_ids": lists(ids, length),
            "tokens": lists(vocabulary.strings(ids), length),
            "activations": lists(activations[inside], length),
        }
    )


def _slots(rule: ContextRule) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Group, band and rank of each slot."""
    sizes = [rule.n_top, *[rule.n_band] * N_BANDS, rule.n_silent]
    groups = np.repeat([0, *[1] * N_BANDS, 2], sizes)
    bands = np.repeat([-1, *range(N_BANDS - 1, -1, -1), -1], sizes)
    ranks = np.concatenate([np.arange(size) for size in sizes])
    return groups, bands.astype(np.int8), ranks.astype(np.int32)


def panel_columns(panel: Arrays, text: Text, vocabulary: Vocabulary) -> dict[str, Any]:
    """Columns of `features.parquet` that come of the entries."""
    n = panel["n_active"]
    some = np.maximum(n, 1)
    ids, counts = panel["top_token_ids"], panel["top_token_counts"]
    rates = (counts / np.maximum(text.counts[ids], 1)).astype(np.float32)
    top_ids, top_counts, top_rates = _known(ids, counts, rates)
    return {
        "density": n / text.n_rows,
        "n_active": n,
        "max_activation": panel["moments"][:, 2].astype(np.float32),
        "mean_activation": panel["moments"][:, 0] / some,
        "std_activation": panel["moments"][:, 3],
        "histogram": lists(panel["histogram"].ravel(), panel["histogram"].shape[1]),
        "positions": lists(panel["positions"].ravel(), panel["positions"].shape[1]),
        "n_documents": panel["n_documents"],
        "top_document_share": (panel["top_document"] / some).astype(np.float32),
        "top_token_ids": top_ids,
        "top_tokens": lists(vocabulary.strings(ids[ids >= 0]), (ids >= 0).sum(1)),
        "top_token_counts": top_counts,
        "top_token_rates": top_rates,
    }


def partner_columns(
    found: Arrays, neighbours: NDArray[np.int64], cosines: NDArray[np.float32]
) -> dict[str, Any]:
    """Columns of `features.parquet` that name other features."""
    correlated = _known(found["correlated"], found["correlations"].astype(np.float32))
    coactive = _known(
        found["coactive"],
        found["coactive_counts"].astype(np.int64),
        found["overlaps"].astype(np.float32),
    )
    near = _known(neighbours, cosines)
    return {
        "neighbours": near[0],
        "neighbour_cosines": near[1],
        "correlated": correlated[0],
        "correlations": correlated[1],
        "coactive": coactive[0],
        "coactive_counts": coactive[1],
        "coactive_jaccard": coactive[2],
    }


def logit_columns(
    logits: LogitEffects, agreement: NDArray[np.float64], vocabulary: Vocabulary
) -> dict[str, Any]:
    """Columns of `features.parquet` that say what a feature promotes."""
    columns: dict[str, Any] = {}
    for name, ids, values in (
        ("top", logits.top_ids, logits.top_values),
        ("bottom", logits.bottom_ids, logits.bottom_values),
    ):
        k = ids.shape[1]
        columns |= {
            f"{name}_logit_tokens": lists(vocabulary.strings(ids), k),
            f"{name}_logit_ids": lists(ids.astype(np.int32).ravel(), k),
            f"{name}_logits": lists(values.ravel(), k),
        }
    return columns | {"logit_sharpness": logits.sharpness, "logit_agreement": agreement}


def logit_agreement(
    promoted: NDArray[np.int64],
    chosen: NDArray[np.int64],
    text: Text,
    vocabulary: Vocabulary,
) -> NDArray[np.float64]:
    """For each feature, the share of its top contexts that its promoted tokens speak of.

    A context counts when the token at its peak, or the one after, is among the tokens that the
    feature promotes (letter case and spaces aside). A feature without contexts has 0.

    Args:
        promoted: (d_sae, k) token ids.
        chosen: (d_sae, n) places of the peaks among the cache's tokens; −1 for none.
    """
    there = chosen >= 0
    wanted = vocabulary.plain(promoted)[:, None, :]
    at_peak = vocabulary.plain(text.tokens[chosen.clip(0)])[..., None]
    after = np.minimum(chosen.clip(0) + 1, len(text.tokens) - 1)
    last = chosen % text.context_size == text.context_size - 1
    behind = vocabulary.plain(text.tokens[after])[..., None]
    agrees = (at_peak == wanted).any(-1) | ((behind == wanted).any(-1) & ~last)
    share: NDArray[np.float64] = (agrees & there).sum(1) / np.maximum(1, there.sum(1))
    return share


def write_contexts(
    path: Path,
    panels: list[tuple[slice, str]],
    work: Work,
    rule: ContextRule,
    text: Text,
    vocabulary: Vocabulary,
) -> None:
    """Write `contexts.parquet`, row groups of some features each."""
    import pyarrow.parquet

    writer = None
    for features, name in panels:
        file = work.open(name)
        for start in range(features.start, features.stop, _GROUP_FEATURES):
            part = slice(start, min(start + _GROUP_FEATURES, features.stop))
            rows = part.start - features.start, part.stop - features.start
            panel = {key: file.read(key, *rows) for key in ("chosen", "activations")}
            table = context_table(panel, part, rule, text, vocabulary)
            writer = writer or pyarrow.parquet.ParquetWriter(
                path, table.schema, compression="zstd"
            )
            writer.write_table(table)
    if writer is not None:
        writer.close()


def numpy_of(tensor: Tensor) -> NDArray[Any]:
    """A tensor of any device as an array."""
    found: NDArray[Any] = tensor.detach().cpu().numpy()
    return found
