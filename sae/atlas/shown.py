"""How a notebook shows an atlas: features to begin with, and how often features fire."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from sae.atlas.labels import read_labels
from sae.atlas.record import AtlasRecord
from sae.base.notebook import html_table

if TYPE_CHECKING:
    import pyarrow
    from matplotlib.figure import Figure

_SHOWN = 12


class _Atlas(Protocol):
    @property
    def folder(self) -> Path: ...
    @property
    def record(self) -> AtlasRecord: ...
    def feature_table(self, names: Sequence[str] | None = None) -> "pyarrow.Table": ...


def as_html(atlas: "_Atlas") -> str:
    """Return some features of usual density as a table, and where to look further."""
    record = atlas.record
    columns = ["feature", "density", "max_activation", "top_tokens"]
    logits = record.without_logits is None and not record.imported
    columns += ["top_logit_tokens"] if logits else []
    features = atlas.feature_table(columns).to_pylist()
    labels = read_labels(atlas.folder).label
    # Neither the rare ones nor those that fire everywhere say much at first sight.
    middle = sorted(
        (f for f in features if f["density"] > 0),
        key=lambda f: abs(np.log(f["density"]) - np.log(0.01)),
    )
    records = []
    for one in middle[:_SHOWN]:
        tokens = ", ".join(map(repr, one["top_tokens"][:4]))
        promoted = ", ".join(map(repr, (one.get("top_logit_tokens") or [])[:4]))
        feature, density = one["feature"], f"{one['density']:.2%}"
        records.append(
            (str(feature), labels[feature], density, one["max_activation"], tokens, promoted)
        )
    dials = f", {record.n_dials} dials of {record.n_scored} scored" if record.n_scored else ""
    return html_table(
        ("feature", "label", "fires on", "highest activation", "tokens", "promotes"),
        records,
        title=f"{record.d_sae:,} features of {record.dictionary}, {record.n_dead} dead{dials}",
        note=f"{len(records)} of them that fire on about 1% of the tokens. All: to_pandas(), "
        f'search("words"), contexts(feature), or {atlas.folder}/index.html',
    )


def densities(atlas: "_Atlas") -> "Figure":
    """Return a histogram of the share of tokens that features fire on."""
    from sae.base.picture import Picture

    found = atlas.feature_table(["density"])["density"].to_numpy()
    live = found[found > 0]
    figure = Picture(6.4, 3.4)
    axes = figure.subplots()
    if len(live):
        axes.hist(
            live, bins=np.geomspace(live.min(), live.max() * 1.01, 41).tolist(), color="#0b6f6a"
        )
        axes.set_xscale("log")
    axes.set_xlabel("share of the tokens that a feature fires on")
    axes.set_ylabel("features")
    n_dead = len(found) - len(live)
    axes.set_title(f"{len(live):,} features fire, {n_dead:,} are dead", loc="left", fontsize=9)
    return figure
