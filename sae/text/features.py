"""`TextFeatures`: which features are active at which tokens of one text."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_SHOWN = 3
"""Features of a token that a notebook shows."""


@dataclass(frozen=True, slots=True)
class TextFeatures:
    """Features of one text, as a sparse matrix of tokens by features."""

    tokens: Sequence[str]
    """What each token adds to the text."""
    acts: Float[Tensor, "token d_sae"]
    """Activations, sparse (COO); `acts.to_dense()` makes an ordinary tensor of them."""
    special: Bool[Tensor, " token"]
    """Which tokens are no text; no feature is active there."""
    labels: Mapping[int, str] = field(default_factory=dict)
    """Labels of features, as far as they are known."""

    def mean(self) -> Float[Tensor, " d_sae"]:
        """Return the mean activation of each feature over the tokens of text."""
        n = max(1, int((~self.special).sum()))
        found: Tensor = torch.sparse.sum(self.acts, 0).to_dense() / n
        return found

    def max(self) -> Float[Tensor, " d_sae"]:
        """Return the highest activation of each feature."""
        found = torch.zeros(self.acts.shape[1])
        return found.scatter_reduce(0, self.acts.indices()[1], self.acts.values(), "amax")

    def top(self, n: int = 10) -> list[tuple[int, float]]:
        """Return the features of the highest mean activation, the strongest first."""
        best = self.mean().topk(min(n, self.acts.shape[1]))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(feature, value) for feature, value in pairs if value > 0]

    def to_pandas(self) -> Any:
        """Return a table of all that is active: position, token, feature, activation.

        Where labels of features are known, they are in a column of their own.
        """
        import pandas

        positions, features = self.acts.indices().tolist()
        columns = {
            "position": positions,
            "token": [self.tokens[i] for i in positions],
            "feature": features,
            "activation": self.acts.values().numpy(),
        }
        if self.labels:
            columns["label"] = [self.labels.get(feature, "") for feature in features]
        return pandas.DataFrame(columns)

    def __repr__(self) -> str:
        """Return one line: how much text, and how much is active."""
        n, d_sae = self.acts.shape
        return (
            f"TextFeatures({n} tokens, {len(self.acts.values()):,} of {d_sae:,} × {n} active)"
        )

    def _repr_html_(self) -> str:
        """Return a table of the tokens with the strongest features of each, for notebooks."""
        found: dict[int, list[tuple[float, int]]] = {}
        indices = self.acts.indices().t().tolist()
        for (position, feature), value in zip(
            indices, self.acts.values().tolist(), strict=True
        ):
            found.setdefault(position, []).append((value, feature))
        lines = []
        for i, token in enumerate(self.tokens):
            strongest = sorted(found.get(i, []), reverse=True)[:_SHOWN]
            shown = [
                html.escape(f"{feature}{self._label(feature)} ({value:.2f})")
                for value, feature in strongest
            ]
            # Labels hold commas, so each stands in a line of its own.
            told = ("<br>" if self.labels else ", ").join(shown)
            lines.append(f"<tr><td><code>{html.escape(token)}</code></td><td>{told}</td></tr>")
        head = "<tr><th>token</th><th>strongest features (activation)</th></tr>"
        return f"<table>{head}{''.join(lines)}</table>"

    def _label(self, feature: int) -> str:
        label = self.labels.get(feature)
        return f" {label}" if label else ""
