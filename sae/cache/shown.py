"""How a notebook shows a cache: its facts, a record a sequence, and the norms of its rows."""

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sae.base.notebook import html_table
from sae.models import ModelRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SINKS = 10
"""Rows above so many median norms are left out of training by default."""


class _Cache(Protocol):
    @property
    def location(self) -> str: ...
    @property
    def model(self) -> ModelRecord: ...
    @property
    def hook_names(self) -> list[str]: ...
    @property
    def n_sequences(self) -> int: ...
    @property
    def context_size(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def documents(self) -> NDArray[np.int32]: ...
    @property
    def held_out(self) -> NDArray[np.bool_]: ...
    def d_in(self, hook_name: str) -> int: ...
    def hook(self, hook_name: str | None) -> str: ...
    def norms(self, hook_name: str) -> NDArray[np.float32]: ...
    def text_rows(self) -> NDArray[np.bool_]: ...


def as_html(cache: "_Cache") -> str:
    """Return what is in the cache as a table of facts."""
    hooks = ", ".join(f"{hook} ({cache.d_in(hook)} wide)" for hook in cache.hook_names)
    held_out = cache.held_out
    facts = [
        ("model", cache.model.name),
        ("hooks", hooks),
        ("sequences", f"{cache.n_sequences:,} of {cache.context_size} tokens"),
        ("held out", f"{int(held_out.sum()):,} sequences, {held_out.mean():.1%}"),
        ("stored as", cache.dtype),
        ("location", cache.location),
    ]
    return html_table((), facts, title="Activation cache")


def as_frame(cache: "_Cache") -> Any:
    """Return a data frame with a record for each sequence."""
    import pandas

    text = cache.text_rows().reshape(cache.n_sequences, cache.context_size)
    documents = cache.documents
    return pandas.DataFrame(
        {
            "sequence": np.arange(cache.n_sequences),
            "held_out": cache.held_out,
            "n_text_tokens": text.sum(1),
            "n_documents": [len(np.unique(line)) for line in documents],
        }
    )


def norms(cache: "_Cache", hook_name: str | None) -> "Figure":
    """Return a histogram of the norms of a hook's rows of text."""
    from sae.base.picture import Picture

    hook = cache.hook(hook_name)
    found = cache.norms(hook).reshape(-1)[cache.text_rows().reshape(-1)]
    figure = Picture(6.4, 3.4)
    axes = figure.subplots()
    edges = np.geomspace(max(found.min(), 1e-6), found.max() * 1.01 + 1e-6, 61)
    axes.hist(found, bins=edges.tolist(), color="#0b6f6a")
    limit = _SINKS * float(np.median(found))
    if limit < edges[-1]:
        words = f"{_SINKS} × the median: left out of training above"
        axes.axvline(limit, color="#5c6866", linestyle="--", label=words)
        axes.legend(frameon=False, fontsize=8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("norm of an activation vector")
    axes.set_ylabel("tokens")
    axes.set_title(f"{hook}: {len(found):,} tokens of text", loc="left", fontsize=9)
    return figure
