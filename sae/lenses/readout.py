"""What lenses say of one text, as a table: `lens.parquet`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.atlas.table import Column, TableSchema
from sae.base import require
from sae.core.effects import kl_divergence
from sae.lenses.streams import (
    EMBEDDING,
    Streams,
    checked_ids,
    hook_of,
    lens_logits,
    read_streams,
)
from sae.lenses.tuned import TunedLens
from sae.models import LanguageModel
from sae.text.token_texts import TokenTexts

if TYPE_CHECKING:
    import pyarrow

LENS = TableSchema(
    "lens.parquet",
    Column("kind", "string", "`logit` or `tuned`"),
    Column("layer", "int32", "number of the block that returned the stream; −1 before all"),
    Column("hook_name", "string", "TransformerLens's name of the place"),
    Column("position", "int32", "place of the token in the text, from 0 on"),
    Column("token", "string", "text of the token there"),
    Column("top_ids", "list<int32>", "ids of the likeliest next tokens, the likeliest first"),
    Column("top_tokens", "list<string>", "their texts", beside="top_ids"),
    Column("top_probabilities", "list<float>", "their probabilities", beside="top_ids"),
    Column("kl", "float", "KL(model ‖ lens) of next tokens, in nats"),
    Column("own_token", "string", "text of the model's own likeliest next token"),
    Column("own_rank", "int32", "its rank in the lens, 1 for the likeliest"),
    Column("own_log_probability", "float", "its natural log-probability in the lens"),
)
"""A record for each kind, layer and position."""


def read_lens(
    model: LanguageModel,
    text: str,
    *,
    tuned: TunedLens | None = None,
    n_top: int = 5,
    n_tokens: int | None = None,
    marks: bool = True,
) -> "pyarrow.Table":
    """Return what a model would predict after each token, layer by layer, as `LENS` has it.

    Args:
        model: a causal language model.
        text: is read with what the model has before a text.
        tuned: maps for a tuned lens beside the logit lens.
        n_top: likeliest tokens to keep.
        n_tokens: tokens of the text to read at most; what comes later changes nothing before.
        marks: whether what the model has before a text is told of too.

    Raises:
        UserError: for a model or a text that cannot be read so, or maps of another model.
    """
    import pyarrow.compute as pc

    if tuned is not None:
        tuned.check_model(model.record)
    ids = checked_ids(model, text, n_tokens)
    streams = read_streams(model.module, ids[None])
    texts = TokenTexts(model.tokenizer)
    own = streams.logits[0].float().log_softmax(-1)
    tokens, best = texts.in_context(ids.tolist()), own.argmax(-1)
    own_tokens = texts.single(best.tolist())
    columns: dict[str, list[object]] = {name: [] for name in LENS.columns}
    for kind, layer, log_probs in _lenses(model, ids, streams, tuned):
        found = _figures(own, best, log_probs, n_top)
        n = len(tokens)
        columns["kind"] += [kind] * n
        columns["layer"] += [layer] * n
        columns["hook_name"] += [hook_of(layer)] * n
        columns["position"] += range(n)
        columns["token"] += tokens
        columns["own_token"] += own_tokens
        columns["top_ids"] += found.top.tolist()
        columns["top_tokens"] += [texts.single(row) for row in found.top.tolist()]
        columns["top_probabilities"] += found.probabilities.tolist()
        columns["kl"] += found.kl.tolist()
        columns["own_rank"] += found.rank.tolist()
        columns["own_log_probability"] += found.log_probability.tolist()
    n_before = 0 if marks else len(model.prompt_ids(text)) - len(model.text_ids(text))
    return LENS.table(columns).filter(pc.field("position") >= n_before)


def _lenses(
    model: LanguageModel,
    ids: Int[Tensor, " position"],
    streams: Streams,
    tuned: TunedLens | None,
) -> Iterator[tuple[str, int, Float[Tensor, "position vocabulary"]]]:
    """Yield kind, layer and log-probabilities of each lens, from the first layer on."""
    end = len(streams.hidden) - 2

    def log_probs(hidden: Tensor) -> Tensor:
        logits = lens_logits(model.module, hidden, ids[None])
        # Hooks of somebody else, or an edit of what the last block returns, act on it twice.
        require(
            hidden is not streams.hidden[-1] or torch.equal(logits, streams.logits),
            "the output of the model's last block is changed by an edit or a hook, so a "
            "lens cannot be read; change something before the last block",
        )
        return logits[0].float().log_softmax(-1)

    for i, hidden in enumerate(streams.hidden):
        yield "logit", i + EMBEDDING, log_probs(hidden)
    if tuned is not None:
        for layer in sorted(tuned.maps):
            yield "tuned", layer, log_probs(tuned(layer, streams.hidden[layer - EMBEDDING]))
        # What is mapped to is its own image.
        yield "tuned", end, log_probs(streams.hidden[-1])


@dataclass(frozen=True, slots=True)
class _Figures:
    """What is said of each position."""

    top: Int[Tensor, "position top"]
    probabilities: Float[Tensor, "position top"]
    kl: Float[Tensor, " position"]
    rank: Int[Tensor, " position"]
    log_probability: Float[Tensor, " position"]


def _figures(
    own: Float[Tensor, "position vocabulary"],
    best: Int[Tensor, " position"],
    log_probs: Float[Tensor, "position vocabulary"],
    n_top: int,
) -> _Figures:
    top = log_probs.topk(min(n_top, log_probs.shape[-1]))
    of_best = log_probs.gather(-1, best[:, None])
    rank = (log_probs > of_best).sum(-1) + 1
    kl = kl_divergence(own, log_probs)
    return _Figures(top.indices, top.values.exp(), kl, rank, of_best[:, 0])
