"""One row a text: what a model's activations come to over its tokens.

A forward pass over a text, stopped behind the last place that is wanted, gives rows of all
places and all ways of pooling at once. Only pooled rows are kept, in the run, and found again
by a digest of the texts, the weights and the text to read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from sae.base import digest, progress, read_object, require, write_json
from sae.models import LanguageModel, Site, read_activations
from sae.models.probe import quietly
from sae.run import Run, make
from sae.text.labelled import LabelledTexts, Span

POOLS = ("last", "mean", "max", "span")
"""What is taken of a text's own tokens: the last one, the mean or the largest value of each
entry, or the last token of the span that is asked about."""
_BATCH_TOKENS = 4096
_ROWS, _ABOUT = "rows.safetensors", "about.json"
_HALF_LIMIT = 6e4
"""Beyond it rows are kept in float32: a half ends at 65,504."""

Encode = Callable[[Float[Tensor, "row d"]], Float[Tensor, "row width"]]


@dataclass(frozen=True, slots=True)
class Reading:
    """What is read of each token."""

    name: str
    """`raw`, or the name of what makes something of activations."""
    site: Site
    encode: Encode | None = None
    """Makes something of activations, such as features; None where they are the rows."""
    digest: str = ""
    """Digest of the dictionary that encodes."""

    @property
    def key(self) -> str:
        """A name that no other reading has."""
        return f"{self.name} {self.site.hook_name}"


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """A text as the model reads it."""

    ids: NDArray[np.int32]
    """Marks included, (position,)."""
    first: int
    """Position of its own first token."""
    end: int
    """The one behind its own last token."""
    asked: int | None
    """Position of the last token of its span."""


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """Texts as a model reads them, and how many were too long for it."""

    texts: tuple[TokenizedText, ...]
    n_cut: int
    """Texts of which only a beginning is read."""

    @property
    def n_tokens(self) -> int:
        """Tokens of all texts, marks included."""
        return sum(len(text.ids) for text in self.texts)


def tokenized_texts(
    model: LanguageModel, texts: LabelledTexts, max_tokens: int
) -> TokenizedTexts:
    """Return texts as token ids, with the model's marks around them.

    Of a longer text the first `max_tokens` tokens are read.

    Raises:
        UserError: if a span is behind the tokens that are read, or the tokenizer does not tell
            where its tokens stand in a text.
    """
    marks, offsets = model.marks, texts.spans is not None
    require(
        not offsets or bool(getattr(model.tokenizer, "is_fast", False)),
        f"{texts.name} has spans, but the tokenizer of {model.record.name} does not say "
        "where its tokens are in a text; choose a model with a fast tokenizer",
    )
    limits = [n for n in (model.max_positions, max_tokens) if n is not None]
    room = max(1, min(limits) - len(marks.begin) - len(marks.end))
    found = model.tokenizer(
        [*texts.texts], add_special_tokens=False, verbose=False, return_offsets_mapping=offsets
    )
    made, n_cut = [], 0
    for i, ids in enumerate(found["input_ids"]):
        require(len(ids) > 0, f"{texts.name}: {texts.texts[i]!r:.40} has no token")
        n_cut += len(ids) > room
        own = ids[:room]
        first = len(marks.begin)
        asked = None
        if texts.spans is not None:
            asked = _last_of(found["offset_mapping"][i][:room], texts.spans[i])
            require(
                asked is not None,
                f"{texts.name}: {texts.words[i] if texts.words else ''!r} in "
                f"{texts.texts[i]!r:.40} is not among the {room} tokens that are read; give a "
                "larger max_tokens or a shorter text",
            )
        whole = np.array([*marks.begin, *own, *marks.end], dtype=np.int32)
        at = None if asked is None else first + asked
        made.append(TokenizedText(whole, first, first + len(own), at))
    return TokenizedTexts(tuple(made), n_cut)


def _last_of(offsets: Sequence[Span], span: Span) -> int | None:
    """Return the last token that has a character of a span, if the span's end is read."""
    inside = [i for i, (a, b) in enumerate(offsets) if a < span[1] and b > span[0] and b > a]
    if not inside or offsets[inside[-1]][1] < span[1]:
        return None
    return inside[-1]


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Activations of some texts of about one length."""

    rows: list[int]
    """Numbers of the texts."""
    own: Bool[Tensor, "text position"]
    """Which tokens are a text's own: neither marks nor padding."""
    at: Mapping[str, Float[Tensor, "text position d"]]
    """By hook name."""


def token_batches(
    model: LanguageModel,
    texts: Sequence[TokenizedText],
    sites: Sequence[Site],
    batch_tokens: int = _BATCH_TOKENS,
) -> Iterator[TokenBatch]:
    """Yield activations of all tokens, texts of about one length together, shortest first.

    Padding stands behind a text. A causal model never looks there; an encoder is told not to.
    """
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
    while order:
        n, width = 0, 0
        for i in order:
            width = max(width, len(texts[i].ids))
            if n and (n + 1) * width > batch_tokens:
                break
            n += 1
        rows, order = order[:n], order[n:]
        width = max(len(texts[i].ids) for i in rows)
        tokens: Int[Tensor, "text position"] = torch.full((n, width), model.marks.pad)
        own = torch.zeros(n, width, dtype=torch.bool)
        there = torch.zeros(n, width, dtype=torch.long)
        for row, i in enumerate(rows):
            one = texts[i]
            tokens[row, : len(one.ids)] = torch.from_numpy(one.ids).long()
            own[row, one.first : one.end] = True
            there[row, : len(one.ids)] = 1
        mask = None if model.record.causal or bool(there.all()) else there.to(model.device)
        seen = read_activations(model.module, sites, tokens.to(model.device), mask)
        yield TokenBatch(rows, own.to(model.device), seen)


def pooled_rows(
    model: LanguageModel,
    texts: Sequence[TokenizedText],
    readings: Sequence[Reading],
    pools: Sequence[str],
    done: Callable[[int], object] = lambda _: None,
) -> dict[str, Float[Tensor, "text width"]]:
    """Return rows of all readings and pools from one pass a text, by `READING POOL`.

    Args:
        model: is run without gradients.
        texts: to read.
        readings: what of them.
        pools: of `POOLS`.
        done: is told how many texts were read.
    """
    sites = [*{reading.site.hook_name: reading.site for reading in readings}.values()]
    found: dict[str, Tensor] = {}
    with quietly(model.module, model.device):
        for batch in token_batches(model, texts, sites):
            asked = torch.tensor([texts[i].asked or 0 for i in batch.rows])
            for reading in readings:
                x = batch.at[reading.site.hook_name]
                for pool in pools:
                    rows = pooled(reading.encode, x, batch.own, pool, asked.to(x.device))
                    key = f"{reading.key} {pool}"
                    if key not in found:
                        found[key] = torch.empty(len(texts), rows.shape[1])
                    found[key][batch.rows] = rows.float().cpu()
            done(len(batch.rows))
    return found


def pooled(
    encode: Encode | None,
    x: Float[Tensor, "text position d"],
    own: Bool[Tensor, "text position"],
    pool: str,
    asked: Int[Tensor, " text"],
) -> Float[Tensor, "text width"]:
    """Return a row for each text; what is made of activations is made of each token's."""
    texts = torch.arange(len(x), device=x.device)
    if pool in ("last", "span"):
        positions = torch.arange(own.shape[1], device=own.device)
        last = torch.where(own, positions, -1).amax(1)
        rows: Tensor = x[texts, asked if pool == "span" else last].float()
        return rows if encode is None else encode(rows)
    flat = x[own].float()
    flat = flat if encode is None else encode(flat)
    which = texts[:, None].expand_as(own)[own]
    empty = flat.new_zeros(len(x), flat.shape[1])
    found: Tensor
    if pool == "mean":
        found = empty.index_add_(0, which, flat) / own.sum(1)[:, None]
    else:
        index = which[:, None].expand_as(flat)
        found = empty.scatter_reduce_(0, index, flat, "amax", include_self=False)
    return found


@dataclass(frozen=True)
class PooledRows:
    """Pooled rows of a task, as they lie in a run."""

    folder: Path

    @cached_property
    def seconds(self) -> float:
        """Time that the model took to read them."""
        return read_object(self.folder / _ABOUT, "remove the folder").get("seconds", float)

    @cached_property
    def n_tokens(self) -> int:
        """Number of tokens that the model read."""
        return read_object(self.folder / _ABOUT, "remove the folder").get("n_tokens", int)

    def of(self, reading: str, hook_name: str, pool: str) -> NDArray[np.float64]:
        """Return rows (text, width) of a reading and a pool."""
        from safetensors import safe_open

        with safe_open(self.folder / _ROWS, framework="pt") as file:
            rows: Tensor = file.get_tensor(f"{reading} {hook_name} {pool}")
        found: NDArray[np.float64] = rows.double().numpy()
        return found


def keep_pooled_rows(
    run: Run,
    model: LanguageModel,
    texts: TokenizedTexts,
    readings: Sequence[Reading],
    pools: Sequence[str],
) -> PooledRows:
    """Return pooled rows: those that the run has already, or else read and kept there."""
    what = [[one.key, one.digest] for one in readings]
    ids = [[one.ids.tolist(), one.first, one.end, one.asked] for one in texts.texts]
    key = digest(
        [ids, model.record.weight_digest, model.record.dtype, what, [*pools], "pooled"]
    )
    folder = run.pooled_rows(key)

    def build(temporary: Path) -> None:
        from safetensors.torch import save_file

        began = perf_counter()
        with progress(len(texts.texts), "probe: reading", "text") as bar:
            found = pooled_rows(model, texts.texts, readings, pools, bar.update)
        spent = perf_counter() - began
        temporary.mkdir()
        save_file({name: _kept(rows) for name, rows in found.items()}, temporary / _ROWS)
        about = {"seconds": spent, "n_tokens": texts.n_tokens, "readings": what}
        write_json(temporary / _ABOUT, {"digest": key, **about})

    # Its name is the digest of what it was made from, and it is there whole or not at all. That
    # it is reused goes without saying: there may be a hundred of them.
    if not (folder / _ABOUT).exists():
        make(folder, (folder / _ABOUT).exists, build, command="probe")
    return PooledRows(folder)


def _kept(rows: Float[Tensor, "text width"]) -> Float[Tensor, "text width"]:
    fits = bool(rows.isfinite().all()) and float(rows.abs().max()) < _HALF_LIMIT
    return rows.half() if fits else rows
