"""What the model loses when a dictionary's reconstruction takes the activations' place.

Every score compares three runs over the same held-out tokens: untouched, with the
reconstruction, and with the activations ablated (to zero, or to their mean). Only text
positions are replaced. Figures are means over the positions whose own token and next token are
both text; `sae/metrics.py` has their formulas. `KL(clean ‖ replaced)` is summed as
`Σ p log p − Σ p·logits + logsumexp(logits)`, which writes no new vocabulary-wide rows.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.base import progress
from sae.edits import Change, Edit, Put, Reconstruction, Splice, Where, edited
from sae.models import LanguageModel, Site


def behaviour(
    model: LanguageModel,
    site: Site,
    tokens: Int[Tensor, "sequence position"],
    dictionaries: Mapping[str, Reconstruction],
    mean: Float[Tensor, " d_out"],
    *,
    source: Site | None = None,
    batch_size: int = 8,
) -> dict[str, dict[str, float]]:
    """Return the scores of several dictionaries at one site, sharing the untouched run.

    Args:
        site: where activations are replaced.
        tokens: held-out ids.
        mean: of the activations at `site`, for mean ablation.
        source: what the dictionaries read; `site` itself if left out.
        batch_size: sequences a forward pass.
    """
    changes: dict[str, Change] = {"zero": Put(torch.zeros_like(mean)), "mean": Put(mean)}
    changes |= {f"sae {name}": Splice(d) for name, d in dictionaries.items()}
    ce = dict.fromkeys(["clean", *changes], 0.0)
    kl = dict.fromkeys(changes, 0.0)
    special = torch.tensor(model.special_token_ids)
    count = 0
    total = tokens.numel() * len(ce)
    with torch.inference_mode(), progress(total, "behaviour", "tok") as bar:
        for batch in torch.split(tokens, batch_size):
            text = ~torch.isin(batch, special)
            scored = (text[:, :-1] & text[:, 1:]).to(model.device)
            ids = batch.to(model.device)
            target = ids[:, 1:][scored]
            clean = _logits(model, ids, scored)
            count += len(target)
            ce["clean"] += _cross_entropy(clean, target)
            probabilities = clean.softmax(-1)
            negative_entropy = (
                _row_dot(probabilities, clean).sum() - clean.logsumexp(-1).double().sum()
            )
            bar.update(batch.numel())
            for name, change in changes.items():
                edit = Edit(site, change, Where(text), source)
                with edited(model.module, [edit]):
                    logits = _logits(model, ids, scored)
                ce[name] += _cross_entropy(logits, target)
                cross = (
                    logits.logsumexp(-1).double().sum() - _row_dot(probabilities, logits).sum()
                )
                kl[name] += float(negative_entropy + cross)
                bar.update(batch.numel())
    ce, kl = ({name: total / count for name, total in sums.items()} for sums in (ce, kl))
    return {name: _scores(ce, kl, f"sae {name}") for name in dictionaries}


def _logits(model: LanguageModel, ids: Tensor, scored: Tensor) -> Tensor:
    logits: Tensor = model.module(ids, use_cache=False).logits
    return logits[:, :-1][scored].float()


def _cross_entropy(logits: Tensor, target: Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits, target, reduction="sum"))


def _row_dot(a: Tensor, b: Tensor) -> Tensor:
    # Without an intermediate of their size, and in float64 at the end.
    return torch.einsum("rv,rv->r", a, b).double()


def _scores(ce: Mapping[str, float], kl: Mapping[str, float], name: str) -> dict[str, float]:
    return {
        "ce_loss_without_sae": ce["clean"],
        "ce_loss_with_sae": ce[name],
        "ce_loss_with_ablation": ce["zero"],
        "ce_loss_with_mean_ablation": ce["mean"],
        "ce_loss_score": (ce["zero"] - ce[name]) / (ce["zero"] - ce["clean"]),
        "ce_loss_score_mean_ablation": (ce["mean"] - ce[name]) / (ce["mean"] - ce["clean"]),
        "kl_div_with_sae": kl[name],
        "kl_div_with_ablation": kl["zero"],
        "kl_div_score": (kl["zero"] - kl[name]) / kl["zero"],
    }
