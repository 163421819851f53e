"""Whether a model uses what a probe reads: the probe's direction is added, and taken out.

Both are done at every token of a text but the model's own marks, as the edit file does that
`sae probe edit` writes. What is measured needs no judge: how far next-token probabilities move,
and what the probe of a later hook then says. Beside each stand random directions as long.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from sae.classifiers import LinearProbe, auc_of
from sae.core.bootstrap import bootstrap_mean
from sae.core.effects import kl_divergence
from sae.core.nulls import random_directions
from sae.edits import Edit, Edits, Library, Planner, Subject, edit, edited
from sae.models import LanguageModel, Site
from sae.models.calls import hooked, without_cache
from sae.models.probe import quietly
from sae.rows.pooled import TokenizedText, pooled
from sae.text.packing import Marks

N_RANDOM = 3
"""Random directions beside a probe's."""
MOST_TEXTS = 32
"""Test texts on which effects are measured."""
_BATCH_TOKENS = 512
"""Tokens whose next-token probabilities are held at once."""
_ADD, _TAKE_OUT = "add", "orthogonal"


@dataclass(frozen=True, slots=True)
class Direction:
    """What is added or taken out."""

    unit: Float[Tensor, " d"]
    length: float
    """How much of it lies between both classes' means of training rows."""


def direction_of(
    probe: LinearProbe, rows: NDArray[np.float64], labels: NDArray[np.bool_]
) -> Direction:
    """Return a probe's direction towards the second class, in the model's units."""
    unit = probe.weights / np.linalg.norm(probe.weights)
    between = (rows[labels].mean(0) - rows[~labels].mean(0)) @ unit
    return Direction(torch.from_numpy(unit).float(), float(between))


@dataclass(frozen=True, slots=True)
class Later:
    """A probe that reads behind a place that is changed."""

    site: Site
    probe: LinearProbe
    pool: str


@dataclass(frozen=True, slots=True)
class Trial:
    """Texts on which a direction is tried."""

    model: LanguageModel
    site: Site
    texts: Sequence[TokenizedText]
    labels: NDArray[np.bool_]
    later: Later | None

    def effects(self, direction: Direction, seed: int) -> dict[str, object]:
        """Return the causal columns of `probes.parquet`."""
        random = random_directions(N_RANDOM, len(direction.unit), seed)
        changes = [
            (do, self._edits(unit, do, by))
            for unit in torch.cat([direction.unit[None], random])
            for do, by in ((_ADD, direction.length), (_TAKE_OUT, None))
        ]
        clean, seen = self._seen([edits for _, edits in changes])
        # Only texts of the first class are steered towards the second.
        first = torch.from_numpy(~self.labels)
        steered = [one for (do, _), one in zip(changes, seen, strict=True) if do == _ADD]
        ablated = [one for (do, _), one in zip(changes, seen, strict=True) if do == _TAKE_OUT]
        found = _beside("steer_kl", [float(one.kl[first].mean()) for one in steered])
        found |= _beside("ablate_kl", [float(one.kl.mean()) for one in ablated])
        found["causal_n"] = len(self.texts)
        if self.later is None:
            return found
        shifts = [(one.later - clean)[first] for one in steered]
        found |= _beside("steer_later", [float(one.mean()) for one in shifts])
        _, low, high = bootstrap_mean(shifts[0], seed)
        found |= {"steer_later_low": low, "steer_later_high": high}
        aucs = [auc_of(one.later.numpy(), self.labels) for one in ablated]
        found |= _beside("ablate_later_auc", aucs)
        found["later_auc"] = auc_of(clean.numpy(), self.labels)
        found["later_hook"] = self.later.site.hook_name
        return found

    def _edits(self, unit: Float[Tensor, " d"], do: str, by: float | None) -> list[Edit]:
        where = {"generated": "none"}
        record = edit(at=self.site.hook_name, direction=unit, do=do, by=by, where=where)
        model = self.model
        subject = Subject(model.module, model.record, len(model.marks.begin), model.text_ids)
        planner = Planner(subject, Library())
        return [*planner.edits(planner.aims(Edits((record,))))]

    def _seen(
        self, changes: Sequence[Sequence[Edit]]
    ) -> tuple[Float[Tensor, " text"], list["_Seen"]]:
        """Return the later probe's log-odds as the model is, and what each change does."""
        before = list[Tensor]()
        kls, later = [list[Tensor]() for _ in changes], [list[Tensor]() for _ in changes]
        with quietly(self.model.module, self.model.device):
            for batch in _padded(self.texts, self.model.marks):
                clean, logits = self._forward(batch, [])
                before.append(logits)
                for i, edits in enumerate(changes):
                    changed, logits = self._forward(batch, edits)
                    each = kl_divergence(clean, changed) * batch.own
                    kls[i].append((each.sum(1) / batch.own.sum(1)).double())
                    later[i].append(logits)
        both = zip(kls, later, strict=True)
        return torch.cat(before), [_Seen(torch.cat(a), torch.cat(b)) for a, b in both]

    def _forward(
        self, batch: "_Padded", edits: Sequence[Edit]
    ) -> tuple[Float[Tensor, "text position vocabulary"], Float[Tensor, " text"]]:
        """Return log-probabilities of next tokens, and log-odds of the later probe, if any."""
        module, later, seen = self.model.module, self.later, dict[str, Tensor]()

        def keep(x: Tensor) -> None:
            seen["x"] = x

        tokens = batch.tokens.to(self.model.device)
        with edited(module, edits), ExitStack() as inside:
            if later is not None:
                inside.enter_context(hooked(module, later.site, keep))
            logits = module(tokens, **without_cache(module)).logits
        log_probs = logits.float().log_softmax(-1).cpu()
        if later is None:
            return log_probs, torch.zeros(len(tokens))
        rows = pooled(None, seen["x"].cpu(), batch.own, later.pool, batch.asked)
        return log_probs, torch.from_numpy(later.probe.logits(rows.double().numpy()))


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a change does to each text."""

    kl: Float[Tensor, " text"]
    later: Float[Tensor, " text"]
    """Log-odds of the later probe."""


def _beside(name: str, values: Sequence[float]) -> dict[str, object]:
    """Return the probe's own figure, and the mean of those of random directions."""
    return {name: values[0], f"{name}_random": float(np.mean(values[1:]))}


@dataclass(frozen=True, slots=True)
class _Padded:
    tokens: Int[Tensor, "text position"]
    own: Bool[Tensor, "text position"]
    asked: Int[Tensor, " text"]


def _padded(texts: Sequence[TokenizedText], marks: Marks) -> Iterator[_Padded]:
    """Yield texts a few at a time, padded behind, where a causal model does not look."""
    together = max(1, _BATCH_TOKENS // max(len(one.ids) for one in texts))
    for start in range(0, len(texts), together):
        some = texts[start : start + together]
        width = max(len(one.ids) for one in some)
        tokens = torch.full((len(some), width), marks.pad)
        own = torch.zeros(len(some), width, dtype=torch.bool)
        for row, one in enumerate(some):
            tokens[row, : len(one.ids)] = torch.from_numpy(one.ids).long()
            own[row, one.first : one.end] = True
        yield _Padded(tokens, own, torch.tensor([one.asked or 0 for one in some]))
