"""What steering does while the model reads: effect and cost, text by text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.core.effects import cross_entropy, kl_divergence, log_mass
from sae.edits import Edit, edited
from sae.edits.copies import Copies, last_logits
from sae.steering.material import Ids

_FIRST_READ = 3
"""Positions of a text before which nothing is read, as there is too little to go on."""

Figures = dict[str, Float[Tensor, "arm text"]]
LogProbs = Float[Tensor, "arm position vocabulary"]


@dataclass(frozen=True, slots=True)
class Alone:
    """An arm of a comparison that adds no vector: other edits, or a sentence before a text."""

    edits: tuple[Edit, ...] = ()
    before: tuple[int, ...] | None = None
    """Ids that take the place of what a text begins with."""

    def log_probs(self, copies: Copies, text: Ids, n_read: int) -> LogProbs:
        """Return log-probabilities of the tokens after the last positions of a text."""
        model = copies.model
        if self.before is not None:
            own = text[len(model.marks.begin) :]
            text = torch.cat([torch.tensor(self.before).to(text), own])
        with torch.inference_mode(), edited(model.module, self.edits):
            logits = last_logits(model.module, text[None].to(model.device), n_read)
        return logits.float().log_softmax(-1)


@dataclass(frozen=True, slots=True)
class Arms:
    """What is compared while the model reads: vectors that are added, then what adds none."""

    copies: Copies
    vectors: Float[Tensor, "vector d_out"]
    others: tuple[Alone, ...] = ()

    @property
    def moves(self) -> Float[Tensor, "arm 1"]:
        """1, and 0 for a vector of zeros: that is the model left alone, whatever is rounded."""
        moves = self.vectors.abs().amax(1, keepdim=True).ne(0).float().cpu()
        return torch.cat([moves, torch.ones(len(self.others), 1)])

    def parts(self, text: Ids, n_read: int) -> Iterator[tuple[LogProbs, LogProbs]]:
        """Yield log-probabilities of the model left alone, and those of arms in order."""
        vectors = self.vectors.to(self.copies.model.device)
        for part in self.copies.log_probs(text, vectors, n_read):
            yield part.plain, part.log_probs
        for other in self.others:
            yield part.plain, other.log_probs(self.copies, text, n_read)


def token_shifts(
    arms: Arms, texts: Sequence[Ids], own: Int[Tensor, " token"]
) -> Float[Tensor, "arm text"]:
    """Return how far arms move log p(the next token is an own one) after prompts, (arm, text).

    It is the change against the model left alone, in nats.
    """
    own = own.to(arms.copies.model.device)
    found = []
    for text in texts:
        parts = [
            log_mass(after, own) - log_mass(plain, own) for plain, after in arms.parts(text, 1)
        ]
        found.append(torch.cat(parts)[:, 0].cpu())
    return torch.stack(found, 1) * arms.moves


def costs(arms: Arms, texts: Sequence[Ids]) -> Figures:
    """Return what arms cost on texts: `kl` and `delta_ce`, nats a token, (arm, text)."""
    rows: dict[str, list[Tensor]] = {"kl": [], "delta_ce": []}
    for text in texts:
        n_read = max(1, len(text) - 1 - _FIRST_READ)
        following = text[None, -n_read:].to(arms.copies.model.device)
        kl, ce = [], []
        for plain, after in arms.parts(text[:-1], n_read):
            kl.append(kl_divergence(plain, after).mean(1))
            rise = cross_entropy(after, following.expand(len(after), -1))
            ce.append((rise - cross_entropy(plain, following)).mean(1))
        rows["kl"].append(torch.cat(kl).cpu())
        rows["delta_ce"].append(torch.cat(ce).cpu())
    return {key: torch.stack(found, 1) * arms.moves for key, found in rows.items()}
