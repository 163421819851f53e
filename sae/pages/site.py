"""The atlas as a folder of static files: the page, and its data in small scripts.

A page that is opened from disk may not fetch files, but it may add script elements: each file
calls `atlas.take` with its name and its content. What a page shows first is in
`data/index.js`, 32 features are in each of `data/features/*.js`, and `data/search/*.js` lead
from words to features.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sae.atlas import AtlasRecord, Labels, flat_and_ends
from sae.base import write_text
from sae.pages.columns import interleaved, rounded, slices
from sae.pages.embed import embedded, embedded_fast, plain
from sae.pages.page import atlas_page
from sae.pages.search_index import SearchIndex

if TYPE_CHECKING:
    import pyarrow

DATA = "data"
BLOCK = 32
"""Features a file."""
_GRID = 4095
"""Steps of the map's coordinates."""


def write_site(
    folder: Path,
    features: "pyarrow.Table",
    contexts: "pyarrow.Table",
    record: AtlasRecord,
    labels: Labels,
    pareto: dict[str, object] | None = None,
) -> None:
    """Write `index.html` and `data/` into the folder of an atlas.

    Some features at a time are turned from columns to text, so the memory needed beside the
    tables does not depend on their number.

    Args:
        folder: of the atlas; files that are there are replaced.
        features: the table of `features.parquet`.
        contexts: the table of `contexts.parquet`, sorted by feature.
        record: what is in `atlas.json`.
        labels: what is in `labels.csv`.
        pareto: as `write_pareto_data` takes it.
    """
    write_text(folder / "index.html", atlas_page(record))
    (folder / DATA / "features").mkdir(parents=True, exist_ok=True)
    (folder / DATA / "search").mkdir(exist_ok=True)
    write_labels_data(folder, labels)
    write_pareto_data(folder, pareto)
    search = SearchIndex()
    for first, block in _blocks(features, contexts):
        name = f"features/{first // BLOCK:05d}"
        _write(folder, name, embedded_fast(block.as_json(first)))
        block.add_words(first, search)
    keys = []
    for key, words in search.files():
        _write(folder, f"search/{key}", embedded_fast(words))
        keys.append(key)
    _write(folder, "index", embedded(_index(features, record, keys)))


def write_labels_data(folder: Path, labels: Labels) -> None:
    """Write `data/labels.js`, whole or not at all.

    Args:
        folder: of the atlas.
        labels: of all its features.
    """
    value = {
        "label": labels.label,
        "explanation": labels.explanation,
        "by_hand": labels.by_hand,
    }
    write_text(folder / DATA / "labels.js", _call("labels", embedded(value)))


def write_pareto_data(folder: Path, pareto: dict[str, object] | None) -> None:
    """Write `data/pareto.js`, whole or not at all.

    Args:
        folder: of the atlas.
        pareto: the dictionaries of the run as `Pareto.for_page` gives them, or None.
    """
    write_text(folder / DATA / "pareto.js", _call("pareto", embedded(plain(pareto))))


def _call(name: str, text: str) -> str:
    return f'atlas.take("{name}",{text});\n'


def _write(folder: Path, name: str, text: str) -> None:
    (folder / DATA / f"{name}.js").write_text(_call(name, text), encoding="utf-8")


def _index(
    features: "pyarrow.Table", record: AtlasRecord, keys: list[str]
) -> dict[str, object]:
    """What the page needs of all features at once."""

    def column(name: str, digits: int = 4) -> list[object]:
        return rounded(features[name].to_numpy(), digits)

    has_logits = "logit_agreement" in features.column_names
    has_map = not features["map_x"].null_count
    return {
        "manifest": plain(record.to_json()),
        "density": column("density"),
        "max": column("max_activation"),
        "mean": column("mean_activation"),
        "x": _steps(features["map_x"].to_numpy()) if has_map else [],
        "y": _steps(features["map_y"].to_numpy()) if has_map else [],
        "agreement": column("logit_agreement", 2) if has_logits else [],
        "documents": features["n_documents"].to_pylist(),
        "block": BLOCK,
        "search": keys,
        "has_logits": has_logits,
        "has_map": has_map,
    }


def _steps(places: np.ndarray) -> list[int]:
    steps: list[int] = np.rint(np.clip(places, 0, 1) * _GRID).astype(int).tolist()
    return steps


def _blocks(
    features: "pyarrow.Table", contexts: "pyarrow.Table"
) -> "Iterator[tuple[int, _Block]]":
    """The first feature of every block, and the block."""
    owners = contexts["feature"].to_numpy()
    for first in range(0, len(features), BLOCK):
        low, high = np.searchsorted(owners, [first, first + BLOCK])
        yield (
            first,
            _Block(features.slice(first, BLOCK), contexts.slice(int(low), int(high - low))),
        )


class _Block:
    """Some consecutive features and their contexts, on the way from columns to JSON."""

    def __init__(self, features: "pyarrow.Table", contexts: "pyarrow.Table") -> None:
        self.features = features.combine_chunks()
        self.contexts = contexts.combine_chunks()
        names = ["top_tokens", "top_logit_tokens", "bottom_logit_tokens"]
        self.token_columns = [name for name in names if name in features.column_names]
        tables = [(self.features, name) for name in self.token_columns]
        self._number_strings([*tables, (self.contexts, "tokens")])

    def _number_strings(self, columns: list[tuple["pyarrow.Table", str]]) -> None:
        """Give the strings numbers, the commonest the shortest."""
        import pyarrow
        import pyarrow.compute as pc

        flat = [flat_and_ends(table, name)[0].cast(pyarrow.string()) for table, name in columns]
        encoded = pc.dictionary_encode(pyarrow.concat_arrays(flat))
        codes = encoded.indices.to_numpy(zero_copy_only=False)
        texts = encoded.dictionary.to_pylist()
        order = np.argsort(-np.bincount(codes, minlength=len(texts)), kind="stable")
        self.strings = [texts[i] for i in order]
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        parts = np.split(rank[codes], np.cumsum([len(array) for array in flat])[:-1])
        self.numbers = {name: part for (_, name), part in zip(columns, parts, strict=True)}

    def as_json(self, first: int) -> dict[str, object]:
        """The block as its file holds it."""
        columns = self._columns()
        names = list(columns)
        rows = [
            dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]
        return {"first": first, "strings": self.strings, "features": rows}

    def _columns(self) -> dict[str, Sequence[object]]:
        """The features' entries by name."""
        table = self.features
        columns: dict[str, Sequence[object]] = {
            "std": rounded(table["std_activation"].to_numpy()),
            "decoder_norm": rounded(table["decoder_norm"].to_numpy()),
            "encoder_norm": rounded(table["encoder_norm"].to_numpy()),
            "histogram": table["histogram"].to_pylist(),
            "positions": table["positions"].to_pylist(),
            "top_document": rounded(table["top_document_share"].to_numpy()),
            "tokens": self._flat("top_tokens", "top_token_counts", "top_token_rates"),
            "top": [[] for _ in range(len(table))],
            "bottom": [[] for _ in range(len(table))],
            "neighbours": self._flat("neighbours", "neighbour_cosines"),
            "correlated": self._flat("correlated", "correlations"),
            "coactive": self._flat("coactive", "coactive_jaccard", "coactive_counts"),
            "contexts": self._contexts(),
        }
        if "top_logits" in table.column_names:
            columns["top"] = self._flat("top_logit_tokens", "top_logits")
            columns["bottom"] = self._flat("bottom_logit_tokens", "bottom_logits")
        return columns

    def _flat(self, *names: str) -> list[list[object]]:
        """The lists of some columns, entry by entry in turn."""
        values = []
        for name in names:
            array, ends = flat_and_ends(self.features, name)
            values.append(
                self.numbers[name].tolist()
                if name in self.numbers
                else rounded(array.to_numpy())
            )
        return slices(interleaved(values), ends * len(names))

    def _contexts(self) -> list[list[object]]:
        """Every feature's contexts: group, sequence, position, peak's place, tokens, values."""
        table = self.contexts
        _, ends = flat_and_ends(table, "tokens")
        activations, _ = flat_and_ends(table, "activations")
        acts = activations.to_numpy()
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        active = np.flatnonzero(acts)
        owner = np.searchsorted(ends, active, side="right")
        shown = interleaved([(active - starts[owner]).tolist(), rounded(acts[active])])
        shown_ends = 2 * np.searchsorted(active, ends)
        band = table["band"].to_pylist()
        group = [
            b if g == "band" else g
            for g, b in zip(table["group"].to_pylist(), band, strict=True)
        ]
        position = table["position"].to_numpy()
        rows = zip(
            group,
            table["sequence"].to_pylist(),
            position.tolist(),
            (position - table["start"].to_numpy()).tolist(),
            slices(self.numbers["tokens"].tolist(), ends),
            slices(shown, shown_ends),
            strict=True,
        )
        all_rows: list[object] = [list(row) for row in rows]
        features = self.features["feature"].to_numpy()
        return slices(
            all_rows, np.searchsorted(table["feature"].to_numpy(), features, side="right")
        )

    def add_words(self, first: int, search: SearchIndex) -> None:
        """Tell the search index which words lead to these features."""
        texts = self._texts_of_top_contexts()
        tokens = [
            slices(self.numbers[name].tolist(), flat_and_ends(self.features, name)[1])
            for name in self.token_columns[:2]
        ]
        for place, text in enumerate(texts):
            numbers = [number for column in tokens for number in column[place]]
            search.add(first + place, [self.strings[number] for number in numbers], text)

    def _texts_of_top_contexts(self) -> list[str]:
        """The joined tokens of every feature's top contexts, a line each."""
        found: list[list[str]] = [[] for _ in range(len(self.features))]
        rows = slices(
            self.numbers["tokens"].tolist(), flat_and_ends(self.contexts, "tokens")[1]
        )
        first = self.features["feature"][0].as_py()
        owners, groups = (self.contexts[name].to_pylist() for name in ("feature", "group"))
        for feature, group, numbers in zip(owners, groups, rows, strict=True):
            if group == "top":
                text = "".join([self.strings[number] for number in numbers])
                found[feature - first].append(text)
        return ["\n".join(texts) for texts in found]
