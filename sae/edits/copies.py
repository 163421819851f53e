"""What a model predicts in many copies of one text, each with a vector of its own added."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.dictionary import Normalisation
from sae.edits.changes import Add
from sae.edits.forward import Edit, edited
from sae.edits.positions import ALL_BUT_FIRST
from sae.models import LanguageModel, Site, read_activations
from sae.models.calls import without_cache
from sae.models.resume import replayed

LEAST_COST = 1e-9
"""Nats a token below which what a vector costs is rounding."""
_LOGITS = 24 << 20
"""Logits that are held at once: 100 MB, and a few times that while they are looked at."""


class Part(NamedTuple):
    """Some copies of a text."""

    which: slice
    """The vectors that these copies add, one each."""
    plain: Float[Tensor, "1 n_read vocabulary"]
    """Log-probabilities of next tokens by the model left alone."""
    log_probs: Float[Tensor, "part n_read vocabulary"]
    """Log-probabilities of the next tokens when the vectors are added."""


@dataclass(frozen=True, slots=True)
class Copies:
    """A place of a model at which vectors are added, at all positions but the first."""

    model: LanguageModel
    site: Site
    normalisation: Normalisation | None = None
    """What the dictionary of the vectors undoes in what it writes, if anything."""

    def log_probs(
        self,
        text: Int[Tensor, " position"],
        vectors: Float[Tensor, "copy d_out"],
        n_read: int,
    ) -> Iterator[Part]:
        """Yield log-probabilities of the tokens after the last `n_read` positions.

        Copies come in parts that fit into memory. What is before the site is computed once, so
        a vector of zeros gives what the model left alone gives, up to the rounding of a larger
        batch. Until the last part is taken the model runs so whoever calls it.
        """
        module, text = self.model.module, text.to(self.model.device)[None]
        n = max(1, _LOGITS // (n_read * _vocabulary(module)))
        with torch.inference_mode(), replayed(module, [self.site], text) as output:
            plain = output.logits[:, -n_read:].float().log_softmax(-1)
            for start in range(0, len(vectors), n):
                some = slice(start, min(start + n, len(vectors)))
                added = Add(vectors[some], self.normalisation)
                with edited(module, [Edit(self.site, added, ALL_BUT_FIRST)]):
                    logits = last_logits(module, text.expand(some.stop - start, -1), n_read)
                yield Part(some, plain, logits.float().log_softmax(-1))

    def activations(self, text: Int[Tensor, " position"]) -> Float[Tensor, "position d_out"]:
        """Return the activations at the place, the model left alone."""
        ids = text[None].to(self.model.device)
        return read_activations(self.model.module, [self.site], ids)[self.site.hook_name][0]

    def typical_norm(self, texts: Sequence[Int[Tensor, " _"]]) -> float:
        """Return the mean norm of the activations in some texts, first positions left out.

        It is in the unit that vectors are added in: where the dictionary reads each row by its
        own length, over the mean of that.
        """
        norms, lengths = [], []
        for text in texts:
            x = self.activations(text)[1:].float()
            norms.append(torch.linalg.vector_norm(x, dim=1))
            if self.normalisation is not None:
                lengths.append(self.normalisation.lengths(x).float().flatten())
        mean = torch.cat(norms).mean()
        return float(mean / torch.cat(lengths).mean() if lengths else mean)


Strengths = Float[Tensor, " vector"]


def strengths_at_cost(
    cost: Callable[[Strengths], Strengths], aim: float, first: Strengths, most: Strengths
) -> Strengths:
    """Return strengths at which vectors cost about as much as each other, in two tries.

    KL grows with the square of a small strength and more slowly with a large one: from the
    `first` strengths the second try assumes the square, and from both the power is known.

    Args:
        cost: returns what vectors cost at some strengths; it is called twice.
        aim: what they are to cost.
        first: strengths to begin with.
        most: the highest strengths to return.
    """
    costs = cost(first).clamp_min(LEAST_COST)
    second = torch.minimum(first * (aim / costs).sqrt(), most)
    again = cost(second).clamp_min(LEAST_COST)
    power = (costs / again).log() / (first / second).log()
    # Where both tries are of one strength, nothing tells the power.
    power = power.nan_to_num(2.0).clamp(0.5, 4)
    return torch.minimum(second * (aim / again) ** (1 / power), most)


def last_logits(
    module: Any, tokens: Int[Tensor, "sequence position"], n_read: int
) -> Float[Tensor, "sequence n_read vocabulary"]:
    """Return the logits at the last positions; others are not computed where a model can."""
    kept = {"logits_to_keep": n_read} if "logits_to_keep" in _arguments(module) else {}
    logits: Tensor = module(tokens, **kept, **without_cache(module)).logits
    return logits[:, -n_read:]


def _arguments(module: nn.Module) -> set[str]:
    return {*signature(module.forward).parameters}


def _vocabulary(module: Any) -> int:
    return int(module.get_output_embeddings().weight.shape[0])
