"""The tables of an atlas: `features.parquet` and `contexts.parquet`, column by column."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Shaped
from numpy.typing import NDArray
from torch import Tensor

from sae.analysis.features import ContextSelection
from sae.analysis.shards import Text
from sae.analysis.work import Arrays, Work
from sae.atlas import GROUPS, N_BANDS, list_array
from sae.atlas.directions import logit_agreement, word_numbers

if TYPE_CHECKING:
    import pyarrow

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

    def strings(self, ids: NDArray[np.integer]) -> "pyarrow.Array":
        """An arrow array of texts, of ids of any shape."""
        return self._strings.take(self._places[ids.ravel()])

    def words(self, ids: NDArray[np.generic]) -> NDArray[np.int64]:
        """Return `word_numbers` of the texts of ids of any shape."""
        found: NDArray[np.int64] = self._words[self._places[ids]]
        return found

    @cached_property
    def _words(self) -> NDArray[np.int64]:
        return word_numbers(self._strings.to_pylist())


@dataclass(frozen=True, slots=True)
class LogitEffects:
    """Tokens that each feature's decoder direction pushes up and down, (d_sae, k) each."""

    top_values: NDArray[np.float32]
    top_ids: NDArray[np.int64]
    bottom_values: NDArray[np.float32]
    bottom_ids: NDArray[np.int64]
    sharpness: NDArray[np.float32]
    """(d_sae,): standard deviations between the mean top logit and the mean logit."""


def _known(names: NDArray[np.int64], *columns: NDArray[np.generic]) -> list[object]:
    """Lists of the names that are there (−1 is none), and of what stands beside them."""
    there = names >= 0
    lengths = there.sum(1)
    flat = [names[there].astype(np.int32), *(column[there] for column in columns)]
    return [list_array(values, lengths) for values in flat]


def context_columns(
    panel: Arrays,
    features: slice,
    selection: ContextSelection,
    text: Text,
    vocabulary: Vocabulary,
) -> dict[str, object]:
    """Columns of `contexts.parquet` of a block of features, in their order.

    Args:
        panel: `chosen` and `activations` of the block, as `feature_panels` keeps them.
    """
    import pyarrow

    there = panel["chosen"] >= 0
    feature, slot = there.nonzero()
    token = panel["chosen"][there]
    position = token % text.context_size
    start = np.maximum(position - selection.radius, 0)
    length = np.minimum(position + selection.radius + 1, text.context_size) - start
    inside = np.arange(2 * selection.radius + 1) < length[:, None]
    first = token - position + start
    ids = text.tokens[(first[:, None] + np.arange(inside.shape[1]))[inside]]
    activations = panel["activations"][there]
    group, band, rank = _slots(selection)
    # The rank counts what was found: places in a group may be empty at the end alone.
    return {
        "feature": (feature + features.start).astype(np.int32),
        "group": pyarrow.array(GROUPS).take(group[slot]),
        "band": band[slot],
        "rank": rank[slot],
        "sequence": token // text.context_size,
        "position": position.astype(np.int32),
        "start": start.astype(np.int32),
        "activation": activations[np.arange(len(token)), position - start],
        "token_ids": list_array(ids, length),
        "tokens": list_array(vocabulary.strings(ids), length),
        "activations": list_array(activations[inside], length),
    }


def _slots(
    selection: ContextSelection,
) -> tuple[NDArray[np.int64], NDArray[np.int8], NDArray[np.int32]]:
    """Group, band and rank of each slot."""
    sizes = [selection.n_top, *[selection.n_band] * N_BANDS, selection.n_silent]
    groups = np.repeat([0, *[1] * N_BANDS, 2], sizes)
    bands = np.repeat([-1, *range(N_BANDS - 1, -1, -1), -1], sizes)
    ranks = np.concatenate([np.arange(size) for size in sizes])
    return groups, bands.astype(np.int8), ranks.astype(np.int32)


def panel_columns(panel: Arrays, text: Text, vocabulary: Vocabulary) -> dict[str, object]:
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
        "histogram": list_array(panel["histogram"].ravel(), panel["histogram"].shape[1]),
        "positions": list_array(panel["positions"].ravel(), panel["positions"].shape[1]),
        "n_documents": panel["n_documents"],
        "top_document_share": (panel["top_document"] / some).astype(np.float32),
        "top_token_ids": top_ids,
        "top_tokens": list_array(vocabulary.strings(ids[ids >= 0]), (ids >= 0).sum(1)),
        "top_token_counts": top_counts,
        "top_token_rates": top_rates,
    }


def related_columns(found: Arrays) -> dict[str, object]:
    """Columns of `features.parquet` that name features active together with others."""
    correlated = _known(found["correlated"], found["correlations"].astype(np.float32))
    coactive = _known(
        found["coactive"],
        found["coactive_counts"].astype(np.int64),
        found["overlaps"].astype(np.float32),
    )
    return {
        "correlated": correlated[0],
        "correlations": correlated[1],
        "coactive": coactive[0],
        "coactive_counts": coactive[1],
        "coactive_jaccard": coactive[2],
    }


def logit_columns(
    logits: LogitEffects, agreement: NDArray[np.float64], vocabulary: Vocabulary
) -> dict[str, object]:
    """Columns of `features.parquet` that say what a feature promotes."""
    columns: dict[str, object] = {}
    for name, ids, values in (
        ("top", logits.top_ids, logits.top_values),
        ("bottom", logits.bottom_ids, logits.bottom_values),
    ):
        k = ids.shape[1]
        columns |= {
            f"{name}_logit_tokens": list_array(vocabulary.strings(ids), k),
            f"{name}_logit_ids": list_array(ids.astype(np.int32).ravel(), k),
            f"{name}_logits": list_array(values.ravel(), k),
        }
    return columns | {"logit_sharpness": logits.sharpness, "logit_agreement": agreement}


def agreement_of_ids(
    promoted: NDArray[np.int64],
    chosen: NDArray[np.int64],
    text: Text,
    vocabulary: Vocabulary,
) -> NDArray[np.float64]:
    """Return the `logit_agreement` of features whose contexts are places in the cache.

    Args:
        promoted: (d_sae, k) token ids.
        chosen: (d_sae, n) places of the peaks among the cache's tokens; −1 for none.
    """
    there = chosen >= 0
    peaks = chosen[there]
    after = np.minimum(peaks + 1, len(text.tokens) - 1)
    near = vocabulary.words(text.tokens[np.stack([peaks, after], axis=1)])
    near[peaks % text.context_size == text.context_size - 1, 1] = -2
    return logit_agreement(vocabulary.words(promoted), there.nonzero()[0], near)


def context_pieces(
    panels: list[tuple[slice, str]],
    work: Work,
    selection: ContextSelection,
    text: Text,
    vocabulary: Vocabulary,
) -> Iterator[dict[str, object]]:
    """Yield the columns of `contexts.parquet`, of some features at a time."""
    for features, name in panels:
        file = work.open(name)
        for start in range(features.start, features.stop, _GROUP_FEATURES):
            part = slice(start, min(start + _GROUP_FEATURES, features.stop))
            rows = part.start - features.start, part.stop - features.start
            panel = {key: file.read(key, *rows) for key in ("chosen", "activations")}
            yield context_columns(panel, part, selection, text, vocabulary)


def numpy_of(tensor: Shaped[Tensor, "..."]) -> NDArray[np.generic]:
    """A tensor of any device as an array."""
    found: NDArray[np.generic] = tensor.detach().cpu().numpy()
    return found
