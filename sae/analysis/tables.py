"""The tables of an atlas: `features.parquet` and `contexts.parquet`, column by column."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sae.analysis.features import ContextSelection
from sae.analysis.shards import Text
from sae.analysis.work import Arrays, Work
from sae.atlas import GROUPS, N_BANDS, list_array
from sae.atlas.directions import logit_agreement, word_numbers
from sae.text.token_texts import TokenTexts

if TYPE_CHECKING:
    import pyarrow

_GROUP_FEATURES = 1024
"""Features whose contexts are a row group, at most, so that some can be read alone."""


class Vocabulary:
    """The texts of tokens by themselves; of those that nothing asks for, nothing."""

    def __init__(self, ids: NDArray[np.int64], strings: Sequence[str]) -> None:
        import pyarrow

        self._places = np.full(int(ids.max(initial=-1)) + 1, -1)
        self._places[ids] = np.arange(len(ids))
        self._strings = pyarrow.array(strings, pyarrow.string())
        self._words = word_numbers(strings)

    def strings(self, ids: NDArray[np.integer]) -> "pyarrow.Array":
        """Return the texts of ids of any shape, one after another."""
        return self._strings.take(self._places[ids.ravel()])

    def words(self, ids: NDArray[np.generic]) -> NDArray[np.int64]:
        """Return `word_numbers` of the texts of ids of any shape."""
        found: NDArray[np.int64] = self._words[self._places[ids]]
        return found


def _known(names: NDArray[np.int64], **columns: NDArray[np.generic]) -> dict[str, object]:
    """Columns of lists whose entries are those that have a name: −1 is none."""
    there = names >= 0
    return {name: list_array(column[there], there.sum(1)) for name, column in columns.items()}


def context_pieces(
    panels: list[tuple[slice, str]],
    work: Work,
    selection: ContextSelection,
    text: Text,
    texts: TokenTexts,
) -> Iterator[dict[str, object]]:
    """Yield the columns of `contexts.parquet`, of some features at a time."""
    import pyarrow

    sizes = [selection.n_top, *[selection.n_band] * N_BANDS, selection.n_silent]
    groups = np.repeat([0, *[1] * N_BANDS, 2], sizes)
    bands = np.repeat([-1, *range(N_BANDS - 1, -1, -1), -1], sizes).astype(np.int8)
    # The rank counts what was found: places in a group may be empty at the end alone.
    ranks = np.concatenate([np.arange(size) for size in sizes]).astype(np.int32)
    for features, name in panels:
        file = work.open(name)
        for first in range(features.start, features.stop, _GROUP_FEATURES):
            stop = min(first + _GROUP_FEATURES, features.stop)
            rows = first - features.start, stop - features.start
            chosen, acts = file.read("chosen", *rows), file.read("activations", *rows)
            there = chosen >= 0
            feature, slot = there.nonzero()
            token, acts = chosen[there], acts[there]
            position = token % text.context_size
            start = np.maximum(position - selection.radius, 0)
            length = np.minimum(position + selection.radius + 1, text.context_size) - start
            inside = np.arange(2 * selection.radius + 1) < length[:, None]
            places = (token - position + start)[:, None] + np.arange(inside.shape[1])
            ids = text.tokens[places[inside]]
            begin = token - position + start
            numbers = texts.windows(text.tokens, begin, begin + length, text.context_size)
            strings = pyarrow.array(texts.strings, pyarrow.string())
            yield {
                "feature": (feature + first).astype(np.int32),
                "group": pyarrow.array(GROUPS).take(groups[slot]),
                "band": bands[slot],
                "rank": ranks[slot],
                "sequence": token // text.context_size,
                "position": position.astype(np.int32),
                "start": start.astype(np.int32),
                "activation": acts[np.arange(len(token)), position - start],
                "token_ids": list_array(ids, length),
                "tokens": list_array(strings.take(numbers), length),
                "activations": list_array(acts[inside], length),
            }


def panel_columns(panel: Arrays, text: Text, vocabulary: Vocabulary) -> dict[str, object]:
    """Columns of `features.parquet` that come of the entries."""
    n = panel["n_active"]
    some = np.maximum(n, 1)
    ids, counts = panel["top_token_ids"], panel["top_token_counts"]
    known = _known(
        ids,
        top_token_ids=ids.astype(np.int32),
        top_token_counts=counts,
        top_token_rates=(counts / np.maximum(text.counts[ids], 1)).astype(np.float32),
    )
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
        "top_tokens": list_array(vocabulary.strings(ids[ids >= 0]), (ids >= 0).sum(1)),
        **known,
    }


def related_columns(found: Arrays) -> dict[str, object]:
    """Columns of `features.parquet` that name features active together with others."""
    correlated, coactive = found["correlated"], found["coactive"]
    return _known(
        correlated,
        correlated=correlated.astype(np.int32),
        correlations=found["correlations"].astype(np.float32),
    ) | _known(
        coactive,
        coactive=coactive.astype(np.int32),
        coactive_counts=found["coactive_counts"].astype(np.int64),
        coactive_jaccard=found["overlaps"].astype(np.float32),
    )


def logit_columns(
    logits: Arrays, agreement: NDArray[np.float64], vocabulary: Vocabulary
) -> dict[str, object]:
    """Columns of `features.parquet` that say what a feature promotes, from `ExtremeLogits`."""
    columns: dict[str, object] = {}
    for name in ("top", "bottom"):
        ids, values = logits[f"{name}_ids"], logits[f"{name}_values"]
        k = ids.shape[1]
        columns |= {
            f"{name}_logit_tokens": list_array(vocabulary.strings(ids), k),
            f"{name}_logit_ids": list_array(ids.astype(np.int32).ravel(), k),
            f"{name}_logits": list_array(values.ravel(), k),
        }
    return columns | {"logit_sharpness": logits["sharpness"], "logit_agreement": agreement}


def agreement_of_ids(
    promoted: NDArray[np.int64], chosen: NDArray[np.int64], text: Text, vocabulary: Vocabulary
) -> NDArray[np.float64]:
    """Return the `logit_agreement` of features, from ids they promote and places of peaks."""
    there = chosen >= 0
    peaks = chosen[there]
    after = np.minimum(peaks + 1, len(text.tokens) - 1)
    near = vocabulary.words(text.tokens[np.stack([peaks, after], axis=1)])
    near[peaks % text.context_size == text.context_size - 1, 1] = -2
    return logit_agreement(vocabulary.words(promoted), there.nonzero()[0], near)
