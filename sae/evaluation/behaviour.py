"""What the model loses when a dictionary's reconstruction takes the activations' place.

Every score compares three runs over the same held-out tokens: untouched, with the
reconstruction, and with the activations ablated (to zero, or to their mean). Only text
positions are replaced. Figures are means over the positions whose own token and next token are
both text; `sae/metrics.py` has their formulas. `KL(clean ‖ replaced)` is summed as
`Σ p log p − Σ p·logits + logsumexp(logits)`, which writes no new vocabulary-wide rows.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.base import progress, require
from sae.core.bootstrap import Interval, bootstrap_ratio
from sae.edits import Change, Edit, Put, Reconstruction, Splice, Where, edited
from sae.models import LanguageModel, Site
from sae.models.resume import replayed

_STANDARD_ERRORS = 3.0
"""By how many of its standard errors an ablation has to raise CE, so that a share of the
difference says something."""
_ROUNDING = 1e-4
"""Nats a token that CE and KL may be off by, from logits in float32."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Losses of the model with the reconstruction of one dictionary in place."""

    values: Mapping[str, float]
    """By the keys of `sae.metrics.METRICS`."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """95% intervals of scores, from drawing sequences again."""
    not_measurable: Mapping[str, str] = field(default_factory=dict)
    """Why a score is not among them: it is a share of what an ablation does, and that is no
    more than chance or rounding."""


def behaviour(
    model: LanguageModel,
    site: Site,
    tokens: Int[Tensor, "sequence position"],
    dictionaries: Mapping[str, Reconstruction],
    mean: Float[Tensor, " d_out"],
    *,
    source: Site | None = None,
    batch_size: int = 8,
) -> dict[str, Scores]:
    """Return the scores of several dictionaries at one site, sharing the untouched run.

    Args:
        site: where activations are replaced.
        tokens: held-out ids.
        mean: of the activations at `site`, for mean ablation.
        source: what the dictionaries read; `site` itself if left out.
        batch_size: sequences a forward pass.

    Raises:
        UserError: if no two tokens of text follow each other, so that nothing is predicted.
    """
    changes: dict[str, Change] = {"zero": Put(torch.zeros_like(mean)), "mean": Put(mean)}
    changes |= {f"sae {name}": Splice(d) for name, d in dictionaries.items()}
    sums = _Sums(["clean", *changes])
    special = torch.tensor(model.special_token_ids)
    total = tokens.numel() * len(sums.names)
    with torch.inference_mode(), progress(total, "behaviour", "tok") as bar:
        for batch in torch.split(tokens, batch_size):
            text = ~torch.isin(batch, special)
            scored = (text[:, :-1] & text[:, 1:]).to(model.device)
            ids = batch.to(model.device)
            # Blocks before both places give the same each time, so they are run once.
            with replayed(model.module, [source or site, site], ids) as output:
                clean, target = _scored(output, scored), ids[:, 1:][scored]
                before, divergence = _cross_entropy(clean, target), _divergence_from(clean)
                begun = sums.begin(scored, before)
                bar.update(batch.numel())
                for name, change in changes.items():
                    with edited(model.module, [Edit(site, change, Where(text), source)]):
                        logits = _scored(model.module(ids, use_cache=False), scored)
                    begun.add(name, _cross_entropy(logits, target), divergence(logits))
                    bar.update(batch.numel())
    require(
        sums.count > 0,
        "the held-out text has no two consecutive tokens, so CE and KL cannot be measured; "
        "give more held-out text, or longer sequences",
    )
    return {name: _scores(sums, f"sae {name}") for name in dictionaries}


def _scored(output: Any, scored: Tensor) -> Tensor:
    logits: Tensor = output.logits
    return logits[:, :-1][scored].float()


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, target, reduction="none")


def _divergence_from(clean: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what gives KL(clean ‖ replaced) of each row of replaced logits, in float64."""
    probabilities = clean.softmax(-1)
    negative_entropy = _row_dot(probabilities, clean) - clean.logsumexp(-1).double()

    def divergence(logits: Tensor) -> Tensor:
        return (
            negative_entropy + logits.logsumexp(-1).double() - _row_dot(probabilities, logits)
        )

    return divergence


def _row_dot(a: Tensor, b: Tensor) -> Tensor:
    # Without an intermediate of their size, and in float64 at the end.
    return torch.einsum("rv,rv->r", a, b).double()


@dataclass(slots=True)
class _Sums:
    """CE and KL of each run, added up sequence by sequence, and what CE differs by."""

    names: list[str]
    count: int = 0
    squares: dict[str, float] = field(default_factory=dict)
    parts: dict[str, list[Tensor]] = field(default_factory=dict)

    def begin(self, scored: Tensor, before: Tensor) -> "_Begun":
        self.count += len(before)
        begun = _Begun(self, scored.nonzero()[:, 0], len(scored), before)
        begun.keep("ce clean", before)
        return begun

    def of(self, name: str) -> Tensor:
        """Return the sums of each sequence, (sequence,), float64."""
        return torch.cat(self.parts[name])

    def mean(self, name: str) -> float:
        """Return the mean over tokens."""
        return float(self.of(name).sum()) / self.count

    def error(self, name: str) -> float:
        """Return the standard error of the mean difference in CE from the untouched run."""
        difference = self.mean(f"ce {name}") - self.mean("ce clean")
        variance = self.squares[name] / self.count - difference**2
        return math.sqrt(max(0.0, variance) / self.count)


@dataclass(slots=True)
class _Begun:
    """Sums to which the runs of one batch are added."""

    sums: _Sums
    sequence: Tensor
    n_sequences: int
    before: Tensor

    def add(self, name: str, after: Tensor, divergence: Tensor) -> None:
        self.keep(f"ce {name}", after)
        self.keep(f"kl {name}", divergence)
        squares = float((after - self.before).double().square().sum())
        self.sums.squares[name] = self.sums.squares.get(name, 0.0) + squares

    def keep(self, name: str, values: Tensor) -> None:
        empty = torch.zeros(self.n_sequences, dtype=torch.float64, device=values.device)
        found = empty.index_add_(0, self.sequence, values.double()).cpu()
        self.sums.parts.setdefault(name, []).append(found)


def _scores(sums: _Sums, name: str) -> Scores:
    ce = {run: sums.mean(f"ce {run}") for run in ("clean", "zero", "mean", name)}
    kl = {run: sums.mean(f"kl {run}") for run in ("zero", name)}
    values = {
        "ce_loss_without_sae": ce["clean"],
        "ce_loss_with_sae": ce[name],
        "ce_loss_with_ablation": ce["zero"],
        "ce_loss_with_mean_ablation": ce["mean"],
        "kl_div_with_sae": kl[name],
        "kl_div_with_ablation": kl["zero"],
    }
    missing, intervals = {}, {}
    for key, ablation, put in (
        ("ce_loss_score", "zero", "zeros"),
        ("ce_loss_score_mean_ablation", "mean", "the mean"),
    ):
        raised, error = ce[ablation] - ce["clean"], sums.error(ablation)
        if raised > max(_STANDARD_ERRORS * error, _ROUNDING):
            values[key] = (ce[ablation] - ce[name]) / raised
            clean, ablated = sums.of("ce clean"), sums.of(f"ce {ablation}")
            intervals[key] = _kept(sums.of(f"ce {name}") - clean, ablated - clean)
        else:
            missing[key] = (
                f"{put} in the activations' place change CE by {raised:+.2g} nats a token, "
                f"which is no more than chance or rounding (a standard error of {error:.2g})"
            )
    if kl["zero"] > _ROUNDING:
        values["kl_div_score"] = (kl["zero"] - kl[name]) / kl["zero"]
        intervals["kl_div_score"] = _kept(sums.of(f"kl {name}"), sums.of("kl zero"))
    else:
        missing["kl_div_score"] = (
            f"zeros in the activations' place move the probabilities by {kl['zero']:.2g} nats "
            "a token, which is no more than rounding"
        )
    return Scores(values, intervals, missing)


def _kept(lost: Tensor, ablated: Tensor) -> Interval:
    """Return 1 − lost / ablated, where both are sums of each sequence, with its interval."""
    share = bootstrap_ratio(lost, ablated)
    return Interval(1 - share.mean, 1 - share.high, 1 - share.low)
