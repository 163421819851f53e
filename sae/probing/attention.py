"""The attention probe: a classifier that learns which tokens of a text to look at.

EleutherAI's form (2025, "Attention probes"): attention to token t is the softmax over tokens of
x_t·q_h + s_h·t, with a learned slope over positions, and the log-odds are
Σ_h Σ_t α_{t,h} (x_t·v_h) + b. With q and s at 0 it is a linear probe of the mean over tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from sae.classifiers import auc_of

STRENGTHS = (1.0, 0.1, 0.01, 0.001)
"""Penalties on squared weights that validation chooses of."""
_STEPS = 60


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Tokens of texts, padded behind each."""

    x: Float[Tensor, "text position d"]
    own: Bool[Tensor, "text position"]
    """Which are tokens of the text."""

    def of(self, texts: NDArray[np.intp]) -> "TokenRows":
        """Return some of the texts."""
        which = torch.from_numpy(texts)
        return TokenRows(self.x[which], self.own[which])


class AttentionProbe(nn.Module):
    """Attention over a text's tokens, and what is read where it looks."""

    def __init__(self, width: int, n_heads: int = 1, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.q = nn.Parameter(torch.zeros(width, n_heads))
        self.slope = nn.Parameter(torch.zeros(n_heads))
        # Heads that begin alike would stay alike.
        self.v = nn.Parameter(1e-3 * torch.randn(width, n_heads, generator=generator))
        self.b = nn.Parameter(torch.zeros(()))

    def forward(
        self, x: Float[Tensor, "text position d"], own: Bool[Tensor, "text position"]
    ) -> Float[Tensor, " text"]:
        """Return the log-odds of the second class for each text."""
        positions = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
        scores = x @ self.q + self.slope * positions[:, None]
        attention = scores.masked_fill(~own[:, :, None], float("-inf")).softmax(1)
        found: Tensor = (attention * (x @ self.v)).sum((1, 2)) + self.b
        return found


@dataclass(frozen=True, slots=True)
class FittedAttention:
    """An attention probe with what its inputs are standardised by."""

    probe: AttentionProbe
    mean: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]
    validation_auc: float

    def logits(self, rows: TokenRows) -> NDArray[np.float64]:
        """Return the log-odds of each text, (text,)."""
        with torch.no_grad():
            found: Tensor = self.probe(_standard(rows, self.mean, self.scale), rows.own)
        return found.double().numpy()


def fit_attention(
    rows: TokenRows,
    labels: NDArray[np.bool_],
    seed: int = 0,
    strengths: Sequence[float] = STRENGTHS,
) -> FittedAttention:
    """Return the attention probe whose penalty has the highest AUC on a fifth of the texts.

    Raises:
        ValueError: if only one class occurs among texts to fit to or to validate on.
    """
    inside = rows.x[rows.own]
    mean, scale = inside.mean(0), inside.std(0).clamp_min(1e-6)
    standard = TokenRows(_standard(rows, mean, scale), rows.own)
    order = np.random.default_rng(seed).permutation(len(labels))
    # A fifth of each class, so that both are on either side.
    both = [order[labels[order] == one] for one in (False, True)]
    validation = np.concatenate([one[: max(1, len(one) // 5)] for one in both])
    fit = np.setdiff1d(order, validation)
    aucs = []
    for strength in strengths:
        probe = _trained(standard.of(fit), labels[fit], strength, seed)
        with torch.no_grad():
            part = standard.of(validation)
            aucs.append(auc_of(probe(part.x, part.own).double().numpy(), labels[validation]))
    best = int(np.argmax(aucs))
    return FittedAttention(
        _trained(standard, labels, strengths[best], seed), mean, scale, aucs[best]
    )


def _standard(
    rows: TokenRows, mean: Float[Tensor, " d"], scale: Float[Tensor, " d"]
) -> Float[Tensor, "text position d"]:
    found: Tensor = ((rows.x - mean) / scale).masked_fill(~rows.own[:, :, None], 0)
    return found


def _trained(
    rows: TokenRows, labels: NDArray[np.bool_], strength: float, seed: int
) -> AttentionProbe:
    """Return a probe at the optimum of mean log-loss and the penalty, as L-BFGS finds it."""
    probe = AttentionProbe(rows.x.shape[2], seed=seed)
    target = torch.from_numpy(labels).to(rows.x)
    solver = torch.optim.LBFGS(
        probe.parameters(), max_iter=_STEPS, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(probe(rows.x, rows.own), target)
        weights = probe.q.square().sum() + probe.v.square().sum() + probe.slope.square().sum()
        total: Tensor = loss + strength / 2 * weights
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        solver.step(closure)  # type: ignore[no-untyped-call]
    return probe
