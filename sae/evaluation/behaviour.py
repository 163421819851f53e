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
    """What the model loses with one dictionary."""

    values: Mapping[str, float]
    """By the keys of `sae.metrics.METRICS`."""
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
    ce = dict.fromkeys(["clean", *changes], 0.0)
    squares = dict.fromkeys(changes, 0.0)
    kl = dict.fromkeys(changes, 0.0)
    special, count = torch.tensor(model.special_token_ids), 0
    total = tokens.numel() * len(ce)
    with torch.inference_mode(), progress(total, "behaviour", "tok") as bar:
        for batch in torch.split(tokens, batch_size):
            text = ~torch.isin(batch, special)
            scored = (text[:, :-1] & text[:, 1:]).to(model.device)
            ids = batch.to(model.device)
            # Blocks before both places give the same each time, so they are run once.
            with replayed(model.module, [source or site, site], ids) as output:
                clean, target = _scored(output, scored), ids[:, 1:][scored]
                count += len(target)
                before, divergence = _cross_entropy(clean, target), _divergence_from(clean)
                ce["clean"] += float(before.double().sum())
                bar.update(batch.numel())
                for name, change in changes.items():
                    with edited(model.module, [Edit(site, change, Where(text), source)]):
                        logits = _scored(model.module(ids, use_cache=False), scored)
                    after = _cross_entropy(logits, target)
                    ce[name] += float(after.double().sum())
                    squares[name] += float((after - before).double().square().sum())
                    kl[name] += divergence(logits)
                    bar.update(batch.numel())
    require(
        count > 0,
        "no two tokens of the held-out text follow each other, so CE and KL have nothing to "
        "be measured on; give more of it, or longer sequences",
    )
    ce, kl, squares = (
        {name: total / count for name, total in sums.items()} for sums in (ce, kl, squares)
    )
    variances = {name: squares[name] - (ce[name] - ce["clean"]) ** 2 for name in changes}
    errors = {name: math.sqrt(max(0.0, v) / count) for name, v in variances.items()}
    return {name: _scores(ce, kl, errors, f"sae {name}") for name in dictionaries}


def _scored(output: Any, scored: Tensor) -> Tensor:
    logits: Tensor = output.logits
    return logits[:, :-1][scored].float()


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, target, reduction="none")


def _divergence_from(clean: Tensor) -> Callable[[Tensor], float]:
    """Return what sums KL(clean ‖ replaced) over rows of replaced logits."""
    probabilities = clean.softmax(-1)
    negative_entropy = _row_dot(probabilities, clean).sum() - clean.logsumexp(-1).double().sum()

    def divergence(logits: Tensor) -> float:
        cross = logits.logsumexp(-1).double().sum() - _row_dot(probabilities, logits).sum()
        return float(negative_entropy + cross)

    return divergence


def _row_dot(a: Tensor, b: Tensor) -> Tensor:
    # Without an intermediate of their size, and in float64 at the end.
    return torch.einsum("rv,rv->r", a, b).double()


def _scores(
    ce: Mapping[str, float], kl: Mapping[str, float], errors: Mapping[str, float], name: str
) -> Scores:
    values = {
        "ce_loss_without_sae": ce["clean"],
        "ce_loss_with_sae": ce[name],
        "ce_loss_with_ablation": ce["zero"],
        "ce_loss_with_mean_ablation": ce["mean"],
        "kl_div_with_sae": kl[name],
        "kl_div_with_ablation": kl["zero"],
    }
    missing = {}
    for key, ablation, put in (
        ("ce_loss_score", "zero", "zeros"),
        ("ce_loss_score_mean_ablation", "mean", "the mean"),
    ):
        raised, error = ce[ablation] - ce["clean"], errors[ablation]
        if raised > max(_STANDARD_ERRORS * error, _ROUNDING):
            values[key] = (ce[ablation] - ce[name]) / raised
        else:
            missing[key] = (
                f"{put} in the activations' place raise CE by {raised:.2g} nats a token, which "
                f"is no more than chance or rounding (a standard error of {error:.2g})"
            )
    if kl["zero"] > _ROUNDING:
        values["kl_div_score"] = (kl["zero"] - kl[name]) / kl["zero"]
    else:
        missing["kl_div_score"] = (
            f"zeros in the activations' place move the probabilities by {kl['zero']:.2g} nats "
            "a token, which is no more than rounding"
        )
    return Scores(values, missing)
