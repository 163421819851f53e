"""What steering does while the model reads: effect and cost, text by text."""

from collections.abc import Callable, Iterator, Sequence
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
class Vectors:
    """Some arms of a comparison: each adds a vector of its own."""

    copies: Copies
    vectors: Float[Tensor, "arm d_out"]

    def log_probs(self, text: Ids, n_read: int) -> Iterator[tuple[slice, LogProbs]]:
        """Yield the arms' log-probabilities after the last positions of a text."""
        return self.copies.log_probs(text, self.vectors, n_read)


@dataclass(frozen=True, slots=True)
class Alone:
    """One arm of a comparison that adds no vector: other edits, or a sentence before a text."""

    copies: Copies
    edits: Callable[[int], Sequence[Edit]] = lambda _: ()
    """Edits of a batch of so many sequences."""
    before: tuple[int, ...] | None = None
    """Ids that take the place of what the text begins with."""
    n_begin: int = 0
    """Tokens that a text begins with and that are none of it."""

    def log_probs(self, text: Ids, n_read: int) -> Iterator[tuple[slice, LogProbs]]:
        """Yield the arm's log-probabilities after the last positions of a text."""
        module = self.copies.model.module
        if self.before is not None:
            text = torch.cat([torch.tensor(self.before).to(text), text[self.n_begin :]])
        with torch.inference_mode(), edited(module, self.edits(1)):
            logits = last_logits(module, text[None].to(self.copies.model.device), n_read)
        yield slice(0, 1), logits.float().log_softmax(-1)


Arms = Vectors | Alone


def token_shifts(arms: Arms, texts: Sequence[Ids], own: Int[Tensor, " token"]) -> Tensor:
    """Return how far arms move log p(the next token is an own one) after prompts, (arm, text).

    It is the change against the model left alone, in nats.
    """
    own = own.to(arms.copies.model.device)
    found = []
    for text in texts:
        plain = log_mass(_plain(arms, text, 1), own)
        parts = [log_mass(one, own) - plain for _, one in arms.log_probs(text, 1)]
        found.append(torch.cat(parts)[:, 0].cpu())
    return torch.stack(found, 1)


def costs(arms: Arms, texts: Sequence[Ids]) -> Figures:
    """Return what arms cost on texts: `kl` and `delta_ce`, nats a token, (arm, text)."""
    rows: dict[str, list[Tensor]] = {"kl": [], "delta_ce": []}
    for text in texts:
        n_read = max(1, len(text) - 1 - _FIRST_READ)
        following = text[-n_read:].to(arms.copies.model.device)
        plain = _plain(arms, text[:-1], n_read)
        before = cross_entropy(plain, following[None])
        kl, ce = [], []
        for _, one in arms.log_probs(text[:-1], n_read):
            kl.append(kl_divergence(plain, one).mean(1))
            after = cross_entropy(one, following.expand(len(one), -1))
            ce.append((after - before).mean(1))
        rows["kl"].append(torch.cat(kl).cpu())
        rows["delta_ce"].append(torch.cat(ce).cpu())
    return {key: torch.stack(found, 1) for key, found in rows.items()}


def _plain(arms: Arms, text: Ids, n_read: int) -> LogProbs:
    zero = Alone(arms.copies)
    return next(zero.log_probs(text, n_read))[1]
