"""Fitting a tuned lens to a cache, and judging it on rows that it was not fitted to.

Rows are text without attention sinks at any of the hooks: a sink's norm is hundreds of times
that of other rows, and its squared error would rule the fit.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from sae.base import digest, progress, require
from sae.cache.layout import ActivationCache
from sae.core.bootstrap import bootstrap_mean
from sae.core.effects import kl_divergence
from sae.lenses.ridge import STRENGTHS, Affine, Sums, chosen_ridge
from sae.lenses.streams import hook_of, layer_of, lens_logits
from sae.lenses.tuned import TunedLens
from sae.models import LanguageModel
from sae.models.resume import n_blocks
from sae.rows.shuffle import RowSelection, rows_in_order, select_rows

_ONE_IN = 10
"""Of so many training sequences the last one judges ridge strengths."""


@dataclass(frozen=True, slots=True)
class CachedStreams:
    """The hooks of a cache that hold a model's stream between blocks."""

    cache: ActivationCache
    last: str
    """The hook of what the last block returns."""
    layers: Mapping[int, str]
    """The hooks of other layers, which can be mapped to it."""

    def digest(self, n_held_out_tokens: int) -> str:
        """Identify the maps that are fitted to these streams, and what is said of them."""
        settings = [*STRENGTHS, _ONE_IN, n_held_out_tokens, "ridge to the last stream"]
        return digest([self.cache.digest, self.last, [*self.layers.items()], settings])

    def keep(self, *, held_out: bool) -> NDArray[np.bool_]:
        """Return which rows are fitted to or judged on, (sequence, position)."""
        names = [self.last, *self.layers.values()]
        chosen = (select_rows(self.cache, name, held_out=held_out).keep for name in names)
        found: NDArray[np.bool_] = np.logical_and.reduce([*chosen])
        return found


def cached_streams(module: nn.Module, cache: ActivationCache, harvest: str) -> CachedStreams:
    """Return the streams that a cache of a model holds; the model needs no weights.

    Args:
        module: the model, loaded or not.
        cache: its activations.
        harvest: the beginning of a command that would make such a cache.

    Raises:
        UserError: if it lacks what the last block returns, or holds no other layer.
    """
    found = {layer_of(module, site): site.hook_name for site in cache.sites}
    layers = {layer: name for layer, name in found.items() if layer is not None}
    end = n_blocks(module) - 1
    wanted = sorted({*layers, end} if {*layers} - {end} else {end // 2, end})
    names = ",".join(map(hook_of, wanted))
    require(
        end in layers,
        f"{cache.location} holds {', '.join(cache.hook_names)}, but a tuned lens also needs "
        f"{hook_of(end)}; make a cache with it: {harvest} hook_names=[{names}]",
    )
    last = layers.pop(end)
    require(
        bool(layers),
        f"{cache.location} holds {last} alone, but a tuned lens also needs other layers; "
        f"make a cache with them: {harvest} hook_names=[{names}]",
    )
    return CachedStreams(cache, last, dict(sorted(layers.items())))


def fit_tuned(
    streams: CachedStreams, model: LanguageModel, n_held_out_tokens: int
) -> TunedLens:
    """Fit a map for each layer to training rows, and judge them on held-out ones.

    Raises:
        UserError: if the cache has too few rows to fit to, or none to judge on.
    """
    keep = streams.keep(held_out=False)
    strengths, maps = {}, {}
    with progress(len(streams.layers), "lens: fitting", "layer") as bar:
        for layer, name in streams.layers.items():
            fitted, judged = _sums(streams, name, keep)
            strengths[layer], found = chosen_ridge(fitted, judged)
            maps[layer] = Affine(found.W.float(), found.b.float())
            # The mean of what all are mapped to, for the floor.
            mean = ((fitted.y + judged.y) / (fitted.n_rows + judged.n_rows)).float()
            bar.update(1)
    judged_on = judge(streams, model, maps, mean, n_held_out_tokens)
    for line in judged_on["layers"]:
        line["strength"] = strengths[line["layer"]]
    about = {"n_training_rows": int(keep.sum()), **judged_on}
    wanted = streams.digest(n_held_out_tokens)
    return TunedLens(maps, wanted, streams.cache.model, about)


def _sums(streams: CachedStreams, name: str, keep: NDArray[np.bool_]) -> tuple[Sums, Sums]:
    """Return the sums over most training rows, and over those that judge ridge strengths."""
    cache = streams.cache
    numbers = np.cumsum(keep.any(1))
    apart = (numbers % _ONE_IN == 0) & keep.any(1)
    found = []
    for chosen in (keep & ~apart[:, None], keep & apart[:, None]):
        sums = Sums(cache.d_in(name), cache.d_in(streams.last))
        for x, y in rows_in_order(RowSelection(cache, (name, streams.last), chosen)):
            sums.add(x, y)
        found.append(sums)
        require(
            sums.n_rows > 0,
            f"{cache.location} has {int(keep.any(1).sum())} training sequences, but a tuned "
            f"lens needs at least {_ONE_IN}; harvest more tokens",
        )
    return found[0], found[1]


def judge(
    streams: CachedStreams,
    model: LanguageModel,
    maps: Mapping[int, Affine],
    mean: Float[Tensor, " d_model"],
    n_tokens: int,
) -> dict[str, Any]:
    """Return KL(model ‖ lens) of the logit lens, a tuned one and a constant, by layer.

    The model's predictions are those of its tail on the last stream of the cache. Intervals are
    over sequences, whose tokens are not independent of each other.

    Args:
        streams: of the cache.
        model: whose tail is used.
        maps: those of the tuned lens, by layer.
        mean: of the last stream over training rows, which is the constant.
        n_tokens: held-out tokens to look at, about.

    Raises:
        UserError: if the cache has no held-out rows.
    """
    figures: dict[str, list[list[float]]] = {}
    n_rows = 0
    for own, of_layers, floor in _compared(streams, model, maps, mean, n_tokens):
        n_rows += len(own)
        for name, log_probs in {"floor": floor, **of_layers}.items():
            kl = kl_divergence(own, log_probs).mean()
            agree = (log_probs.argmax(-1) == own.argmax(-1)).float().mean()
            figures.setdefault(name, []).append([float(kl), float(agree)])
    require(n_rows > 0, f"{streams.cache.location} has no held-out rows; harvest more tokens")
    tables = {name: torch.tensor(values).double() for name, values in figures.items()}

    def told(name: str) -> dict[str, object]:
        kl, agree = tables[name].unbind(1)
        return {"kl": bootstrap_mean(kl).to_json(), "agreement": float(agree.mean())}

    lines = []
    for layer, hook_name in streams.layers.items():
        logit, tuned = f"logit {layer}", f"tuned {layer}"
        gain = bootstrap_mean(tables[logit][:, 0] - tables[tuned][:, 0]).to_json()
        line = {"logit": told(logit), "tuned": told(tuned), "gain": gain}
        lines.append({"layer": layer, "hook_name": hook_name, **line})
    return {"n_held_out_rows": n_rows, "floor": told("floor"), "layers": lines}


LogProbs = Float[Tensor, "row vocabulary"]


def _compared(
    streams: CachedStreams,
    model: LanguageModel,
    maps: Mapping[int, Affine],
    mean: Float[Tensor, " d_model"],
    n_tokens: int,
) -> Iterator[tuple[LogProbs, dict[str, LogProbs], LogProbs]]:
    """Yield log-probabilities of the model, of lenses and of the constant, a sequence each."""
    cache, module = streams.cache, model.module
    keep, tokens = streams.keep(held_out=True), torch.from_numpy(cache.tokens).long()
    there = np.flatnonzero(keep.any(1))
    wanted = -(-n_tokens // cache.context_size)
    chosen = there[np.linspace(0, len(there) - 1, min(wanted, len(there))).astype(int)]
    dtype = next(iter(module.parameters())).dtype

    def log_probs(hidden: Tensor, ids: Tensor, rows: Bool[Tensor, " position"]) -> LogProbs:
        hidden = hidden.to(model.device, dtype)
        logits = lens_logits(module, hidden, ids[None].to(model.device))
        found: Tensor = logits[0][rows.to(model.device)].float().log_softmax(-1)
        return found

    with progress(len(chosen), "lens: judging", "seq") as bar:
        for i in chosen.tolist():
            ids, rows = tokens[i], torch.from_numpy(keep[i])
            own = log_probs(cache.read(streams.last, slice(i, i + 1)), ids, rows)
            floor = log_probs(mean[None, None], ids[:1], torch.tensor([True]))
            found = {}
            for layer, name in streams.layers.items():
                hidden = cache.read(name, slice(i, i + 1)).float()
                found[f"logit {layer}"] = log_probs(hidden, ids, rows)
                found[f"tuned {layer}"] = log_probs(maps[layer](hidden), ids, rows)
            bar.update(1)
            yield own, found, floor.expand_as(own)
