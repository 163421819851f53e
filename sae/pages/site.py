"""The atlas as a folder of static files: the page, and its data in small scripts.

A page that is opened from disk may not fetch files, but it may add script elements: each file
calls `atlas.take` with its name and its content. What a page shows first is in `index.js`, 32
features are in each of `features/*.js`, and `search/*.js` lead from words to features.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sae.atlas import (
    DIALS,
    FEATURES,
    AtlasRecord,
    Labels,
    flat_and_ends,
    list_array,
    list_lengths,
)
from sae.base import write_text
from sae.pages.page import atlas_page, embedded, embedded_fast, plain
from sae.pages.search import SearchIndex
from sae.text.scripts import UNSPACED

if TYPE_CHECKING:
    import pyarrow

DATA = "data"
BLOCK = 32
"""Features a file."""
_GRID = 4095
"""Steps of the map's coordinates."""
_VERDICTS = ("none", "weak", "dial")
"""Verdicts on a feature as a dial; the page has each as its place here."""
_TOKENS = ("top_tokens", "top_logit_tokens", "bottom_logit_tokens")
T = TypeVar("T")


def write_site(
    folder: Path,
    features: "pyarrow.Table",
    contexts: "pyarrow.Table",
    record: AtlasRecord,
    labels: Labels,
    pareto: dict[str, object] | None = None,
) -> None:
    """Write `index.html` and `data/` into the folder of an atlas, from its tables.

    Contexts are sorted by feature. Some features at a time are turned from columns to text, so
    the memory needed beside the tables does not depend on their number.
    """
    write_text(folder / "index.html", atlas_page(record))
    (folder / DATA / "features").mkdir(parents=True, exist_ok=True)
    (folder / DATA / "search").mkdir(exist_ok=True)
    write_labels_data(folder, labels)
    write_pareto_data(folder, pareto)
    search = SearchIndex()
    owners = contexts["feature"].to_numpy()
    for first in range(0, len(features), BLOCK):
        low, high = np.searchsorted(owners, [first, first + BLOCK]).tolist()
        some = features.slice(first, BLOCK).combine_chunks()
        theirs = contexts.slice(low, high - low).combine_chunks()
        name = f"features/{first // BLOCK:05d}"
        _write(folder, name, embedded_fast({"first": first, **_block(some, theirs)}))
        _add_words(search, some, theirs)
    keys = []
    for key, words in search.files():
        _write(folder, f"search/{key}", embedded_fast(words))
        keys.append(key)
    _write(folder, "index", embedded(_index(features, record, keys)))


def write_labels_data(folder: Path, labels: Labels) -> None:
    """Write `data/labels.js` of the atlas in `folder`, whole or not at all."""
    value = {
        "label": labels.label,
        "explanation": labels.explanation,
        "by_hand": labels.by_hand,
    }
    write_text(folder / DATA / "labels.js", _call("labels", embedded(value)))


def write_pareto_data(folder: Path, pareto: dict[str, object] | None) -> None:
    """Write `data/pareto.js`, whole or not at all, from what `Pareto.for_page` gives."""
    write_text(folder / DATA / "pareto.js", _call("pareto", embedded(plain(pareto))))


def _call(name: str, text: str) -> str:
    return f'atlas.take("{name}",{text});\n'


def _write(folder: Path, name: str, text: str) -> None:
    (folder / DATA / f"{name}.js").write_text(_call(name, text), encoding="utf-8")


def _index(
    features: "pyarrow.Table", record: AtlasRecord, keys: list[str]
) -> dict[str, object]:
    """Return what the page needs of all features at once."""

    def column(name: str, digits: int = 4) -> list[object]:
        return _rounded(features[name].to_numpy(), digits)

    def steps(name: str) -> list[int]:
        places = np.clip(features[name].to_numpy(), 0, 1)
        return np.rint(places * _GRID).astype(int).tolist()  # type: ignore[no-any-return]

    has_logits = "logit_agreement" in features.column_names
    has_map = not features["map_x"].null_count
    return {
        "manifest": plain(record.to_json()),
        "density": column("density"),
        "max": column("max_activation"),
        "mean": column("mean_activation"),
        "x": steps("map_x") if has_map else [],
        "y": steps("map_y") if has_map else [],
        "agreement": column("logit_agreement", 2) if has_logits else [],
        "documents": features["n_documents"].to_pylist(),
        "block": BLOCK,
        "search": keys,
        "unspaced": UNSPACED,
        "has_logits": has_logits,
        "has_map": has_map,
        "dials": _dials(features),
        "stability": _stability(features),
    }


def _stability(features: "pyarrow.Table") -> list[object]:
    """Return each feature's stability; nothing where no other seed was there to compare."""
    if "stability" not in features.column_names:
        return []
    column = features["stability"]
    if column.null_count == len(column):
        return []
    return _rounded(column.to_numpy(), 3)


def _dials(features: "pyarrow.Table") -> dict[str, list[object]]:
    """Return what the page needs of all features that were scored.

    Often few of all features were, so the others take no room.
    """
    if "dial_verdict" not in features.column_names:
        return {"feature": [], "verdict": [], "score": [], "dose": []}
    verdicts = features["dial_verdict"].to_pylist()
    scored = [place for place, verdict in enumerate(verdicts) if verdict]
    # An empty list would be of no type.
    few = features.take(np.array(scored, dtype=np.int64))
    return {
        "feature": few["feature"].to_pylist(),
        "verdict": [_VERDICTS.index(verdicts[place]) for place in scored],
        "score": _rounded(few["dial_score"].to_numpy(), 3),
        "dose": _rounded(few["dial_strength"].to_numpy(), 3),
    }


def _dial_rows(
    features: "pyarrow.Table",
) -> tuple[list[str], Sequence[list[object] | None]]:
    """Return names of the figures of dials, and those of each feature; None without."""
    names = [
        name
        for name in features.column_names
        if FEATURES.columns[name].group == DIALS and name != "dial_verdict"
    ]
    if not names:
        return [], [None] * len(features)
    rows = zip(*(_rounded(features[name].to_numpy(), 3) for name in names), strict=True)
    verdicts = features["dial_verdict"].to_pylist()
    return names, [
        [*row] if verdict else None for row, verdict in zip(rows, verdicts, strict=True)
    ]


def _block(features: "pyarrow.Table", contexts: "pyarrow.Table") -> dict[str, object]:
    """Return the strings of consecutive features, and the features, which number them."""
    flat = {n: flat_and_ends(features, n)[0] for n in _TOKENS if n in features.column_names}
    flat["tokens"] = flat_and_ends(contexts, "tokens")[0]
    strings, numbers = _numbered(flat)

    def rows(*names: str) -> list[list[object]]:
        """Return the lists of some columns, entry by entry in turn."""
        if names[0] not in features.column_names:
            return [[] for _ in range(len(features))]
        values, ends = [], flat_and_ends(features, names[0])[1]
        for name in names:
            array = None if name in numbers else flat_and_ends(features, name)[0].to_numpy()
            values.append(numbers[name].tolist() if array is None else _rounded(array))
        return _slices(_interleaved(values), ends * len(names))

    owners, own = contexts["feature"].to_numpy(), features["feature"].to_numpy()
    of_feature = np.searchsorted(owners, own, side="right")
    dial_columns, dials = _dial_rows(features)
    columns = {
        "std": _rounded(features["std_activation"].to_numpy()),
        "decoder_norm": _rounded(features["decoder_norm"].to_numpy()),
        "encoder_norm": _rounded(features["encoder_norm"].to_numpy()),
        "histogram": features["histogram"].to_pylist(),
        "positions": features["positions"].to_pylist(),
        "top_document": _rounded(features["top_document_share"].to_numpy()),
        "tokens": rows("top_tokens", "top_token_counts", "top_token_rates"),
        "top": rows("top_logit_tokens", "top_logits"),
        "bottom": rows("bottom_logit_tokens", "bottom_logits"),
        "neighbours": rows("neighbours", "neighbour_cosines"),
        "correlated": rows("correlated", "correlations"),
        "coactive": rows("coactive", "coactive_jaccard", "coactive_counts"),
        "dial": dials,
        "contexts": _slices(_context_rows(contexts, numbers["tokens"]), of_feature),
    }
    entries = zip(*columns.values(), strict=True)
    found = [dict(zip(columns, row, strict=True)) for row in entries]
    return {"strings": strings, "dial_columns": dial_columns, "features": found}


def _numbered(
    texts: "dict[str, pyarrow.Array]",
) -> tuple[list[str], dict[str, NDArray[np.int64]]]:
    """All strings, the commonest first, and in place of each text its number among them."""
    import pyarrow
    import pyarrow.compute as pc

    flat = pyarrow.concat_arrays([array.cast(pyarrow.string()) for array in texts.values()])
    encoded = pc.dictionary_encode(flat)
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    order = np.argsort(-np.bincount(codes, minlength=len(encoded.dictionary)), kind="stable")
    parts = np.split(order.argsort()[codes], np.cumsum([*map(len, texts.values())])[:-1])
    strings = encoded.dictionary.take(pyarrow.array(order)).to_pylist()
    return strings, dict(zip(texts, parts, strict=True))


def _context_rows(table: "pyarrow.Table", tokens: NDArray[np.int64]) -> list[list[object]]:
    """Group, sequence, position, place of the peak, tokens and activations of each context."""
    _, ends = flat_and_ends(table, "tokens")
    acts = flat_and_ends(table, "activations")[0].to_numpy()
    active = np.flatnonzero(acts)
    starts = np.concatenate([[0], ends])[np.searchsorted(ends, active, side="right")]
    shown = _interleaved([(active - starts).tolist(), _rounded(acts[active])])
    group, band, sequence, position, start = (
        table[name].to_pylist() for name in ("group", "band", "sequence", "position", "start")
    )
    columns = (
        [b if g == "band" else g for g, b in zip(group, band, strict=True)],
        sequence,
        position,
        [p - s for p, s in zip(position, start, strict=True)],
        _slices(tokens.tolist(), ends),
        _slices(shown, 2 * np.searchsorted(active, ends)),
    )
    return [list(row) for row in zip(*columns, strict=True)]


def _add_words(
    search: SearchIndex, features: "pyarrow.Table", contexts: "pyarrow.Table"
) -> None:
    """Tell the search index which words lead to these features."""
    import pyarrow
    import pyarrow.compute as pc

    top = contexts.filter(pc.field("group") == "top")
    tokens = flat_and_ends(top, "tokens")[0].cast(pyarrow.string())
    joined = pc.binary_join(list_array(tokens, list_lengths(top, "tokens")), "").to_pylist()
    texts = defaultdict(list)
    for feature, text in zip(top["feature"].to_pylist(), joined, strict=True):
        texts[feature].append(text)
    names = [name for name in _TOKENS[:2] if name in features.column_names]
    for row in features.select(["feature", *names]).to_pylist():
        telling = [token for name in names for token in row[name]]
        search.add(row["feature"], telling, "\n".join(texts[row["feature"]]))


def _slices(values: list[T], ends: NDArray[np.int64]) -> list[list[T]]:
    """`values` cut where the lists end."""
    places = [0, *ends.tolist()]
    return [values[start:end] for start, end in pairwise(places)]


def _interleaved(columns: list[list[object]]) -> list[object]:
    """Return the entries of equally long lists in turn."""
    flat: list[object] = [None] * (len(columns) * len(columns[0]))
    for place, column in enumerate(columns):
        flat[place :: len(columns)] = column
    return flat


def _rounded(values: NDArray[Any], digits: int = 4) -> list[object]:
    """Numbers to so many significant digits, whole numbers as such; None for no number."""
    if values.dtype.kind in "iub":
        return values.tolist()  # type: ignore[no-any-return]
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
