"""A dictionary's reconstruction of rows of a cache, and what the model loses by it."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sae.base import require
from sae.cache.layout import ActivationCache
from sae.core.blocks import BlockStatistics
from sae.core.bootstrap import Interval
from sae.dictionary import Dictionary, add_reconstruction
from sae.evaluation.behaviour import Scores, behaviour
from sae.models import LanguageModel
from sae.rows.shuffle import RowSelection, joined, rows_in_order, select_rows

_ROWS_A_BATCH = 4096


def measured_rows(
    dictionary: Dictionary, cache: ActivationCache, *, held_out: bool
) -> RowSelection:
    """Select the rows of a cache on which a dictionary is measured, at the hooks that it has.

    Rows that its training left out for their norm are left out here too.
    """
    return select_rows(
        cache,
        *dict.fromkeys(dictionary.hook_names),
        held_out=held_out,
        max_norm_multiple=dictionary.record.max_norm_multiple,
    )


def reconstruction(
    dictionary: Dictionary, rows: RowSelection, limit: int | None = None
) -> BlockStatistics:
    """Statistics of a dictionary over `measured_rows`, at most about `limit`, evenly spread."""
    statistics = BlockStatistics(dictionary.d_out, dictionary.d_sae)
    device = dictionary.W_enc.device
    for stored in _batches(rows_in_order(rows, limit)):
        sides = [side.to(device).float() for side in stored]
        add_reconstruction(statistics, dictionary, sides[0], sides[-1])
    return statistics


def _batches(pieces: Iterator[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    # All of one size but the last, as which product is fastest is tried for each size anew.
    waiting: tuple[Tensor, ...] | None = None
    for piece in pieces:
        there = piece if waiting is None else joined([waiting, piece])
        n = len(there[0]) // _ROWS_A_BATCH * _ROWS_A_BATCH
        for at in range(0, n, _ROWS_A_BATCH):
            yield tuple(side[at : at + _ROWS_A_BATCH] for side in there)
        waiting = tuple(side[n:] for side in there)
    if waiting is not None and len(waiting[0]):
        yield waiting


def behaviour_scores(
    model: LanguageModel,
    cache: ActivationCache,
    dictionaries: dict[str, Dictionary],
    n_tokens: int,
    batch_size: int,
) -> tuple[int, dict[str, Scores]]:
    """Return how many held-out tokens went through the model, and each dictionary's scores.

    The dictionaries have the same hooks, and the model is the one that the cache was made with.
    Of about `n_tokens` whole sequences are taken, at least one.

    Raises:
        UserError: if the sequences are longer than what the model can read.
    """
    size, longest = cache.context_size, model.max_positions
    require(
        longest is None or size <= longest,
        f"{cache.location} has sequences of {size} tokens, but its model reads only "
        f"{longest} at once; give a cache with shorter sequences",
    )
    hook_name, hook_name_out = next(iter(dictionaries.values())).hook_names
    held_out = torch.from_numpy(cache.tokens[cache.held_out]).long()
    tokens = held_out[: max(1, n_tokens // cache.context_size)]
    scores = behaviour(
        model,
        cache.site(hook_name_out),
        tokens,
        dictionaries,
        torch.from_numpy(cache.statistics(hook_name_out)["mean"]),
        source=cache.site(hook_name),
        batch_size=batch_size,
    )
    return tokens.numel(), scores


def known_ends(found: Mapping[str, Interval]) -> dict[str, list[float]]:
    """Return the ends of intervals that have some."""
    known = {key: one for key, one in found.items() if math.isfinite(one.low)}
    return {key: [one.low, one.high] for key, one in known.items()}
