"""Limits on the next token: a mask, a penalty that a controller sets, and what they cost.

All is of the distribution that tokens are drawn from, p = softmax(logits / T). What a limit
makes of it is q, and its cost is KL(q ‖ p), how many nats a token it takes to tell limited
texts from the model's own. Let P be the probability of all tokens outside, and A = 1 − P.

The mask takes q(t) = p(t) / A of allowed tokens and 0 of others. For any q without mass outside
KL(q ‖ p) = KL(q ‖ mask) − ln A (the Pythagorean identity of I-projections, Csiszár 1975), so
none costs less than the mask's −ln A.

A penalty of s nats on all tokens outside makes q(t) = p(t) e^(−s [t is outside]) / Z, with
Z = A + P e^(−s). Its mass outside is Q = P e^(−s) / Z, and its cost −s Q − ln Z. Of all q with
that mass outside none costs less, by the same identity.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.steering.words import State, Words
from sae.writing import Sampling, SharedNoise

GAIN = 16.0
"""Nats by which a penalty rises at a step with the whole mass outside and a target of none.

So that a text of some dozens of tokens is long enough to come to its target."""


def masses(
    scores: Float[Tensor, "sequence vocabulary"],
    allowed: Bool[Tensor, "sequence vocabulary"],
    temperature: float,
) -> list[tuple[float, float]]:
    """Return ln A and ln P of softmax(scores / temperature), in float64, of each sequence.

    Args:
        scores: logits of the next token.
        allowed: which tokens are allowed.
        temperature: above 0.
    """
    log_p = (scores.double() / temperature).log_softmax(1)
    inside = log_p.masked_fill(~allowed, -math.inf).logsumexp(1)
    outside = log_p.masked_fill(allowed, -math.inf).logsumexp(1)
    return [*zip(inside.tolist(), outside.tolist(), strict=True)]


def penalised_mass(inside: float, outside: float, strength: float) -> float:
    """Return Q, the mass outside under a penalty of `strength` nats, from ln A and ln P."""
    # Rounding alone takes it above 1.
    return min(1.0, math.exp(outside - strength - _log_sum(inside, outside - strength)))


def penalised_cost(inside: float, outside: float, strength: float) -> float:
    """Return KL(q ‖ p), nats, of a penalty of `strength` nats, from ln A and ln P.

    An infinite penalty is the mask, which costs −ln A; none costs nothing.
    """
    if strength in (0, math.inf):
        return max(0.0, -inside) if strength else 0.0
    log_z = _log_sum(inside, outside - strength)
    # Rounding alone takes it below 0.
    return max(0.0, -strength * penalised_mass(inside, outside, strength) - log_z)


def _log_sum(a: float, b: float) -> float:
    high = max(a, b)
    return high + math.log(math.exp(a - high) + math.exp(b - high))


@dataclass(slots=True)
class Controller:
    """Sets a penalty so that a share `target` of the mass is outside, on average.

    After every step the strength rises by `gain` times what is outside too much, and falls by
    what is missing, but never below 0: integral control. It is also dual ascent on the problem
    of least cost for that average, whose solution is one strength at all steps. As it begins
    at 0, after n steps the mean mass outside is at most target + strength / (gain n).
    """

    target: float
    gain: float = GAIN
    strength: float = 0.0

    def follow(self, mass: float) -> None:
        """Take the mass that was outside at a step, under the strength of that step."""
        self.strength = max(0.0, self.strength + self.gain * (mass - self.target))


@dataclass(slots=True)
class Limiter:
    """Limits what some of several sequences may write, and keeps what that costs.

    It is called with the ids so far and the scores of the next tokens, as a step of `generate`
    calls it, and adds the noise that all sequences share.
    """

    words: Words
    states: list[State]
    """Place of each sequence in the tree of words, at first just after its prompt."""
    penalties: list[float]
    """What is taken from the log-probability of tokens outside, of each sequence, nats;
    infinite for a mask. The controller changes its own."""
    controlled: int
    """The sequence whose penalty the controller sets."""
    controller: Controller
    sampling: Sampling
    """How tokens are drawn, at a temperature above 0."""
    strengths: list[float] = field(default_factory=list)
    """The controller's penalty at each step, nats."""
    outside: list[list[float]] = field(default_factory=list)
    """Mass outside under the limits, of each sequence at each step."""
    costs: list[list[float]] = field(default_factory=list)
    """KL(limited ‖ unlimited), nats, of each sequence at each step."""
    noise: SharedNoise = field(init=False)

    def __post_init__(self) -> None:
        self.noise = SharedNoise(self.sampling, lambda: None)

    def __call__(
        self,
        ids: Int[Tensor, "sequence position"],
        scores: Float[Tensor, "sequence vocabulary"],
    ) -> Float[Tensor, "sequence vocabulary"]:
        """Return the scores that the next tokens are chosen by."""
        if self.costs:
            last = zip(self.states, ids[:, -1].tolist(), strict=True)
            self.states = [self.words.step(state, token)[0] for state, token in last]
        allowed = torch.stack([self.words.allowed(state) for state in self.states])
        allowed, temperature = allowed.to(scores.device), self.sampling.temperature
        self.strengths.append(self.controller.strength)
        self.penalties[self.controlled] = self.controller.strength
        penalty = temperature * torch.tensor(self.penalties).to(scores)[:, None]
        limited = torch.where(allowed, scores, scores - penalty)
        each = [*zip(masses(scores, allowed, temperature), self.penalties, strict=True)]
        self.outside.append([penalised_mass(*pair, nats) for pair, nats in each])
        self.costs.append([penalised_cost(*pair, nats) for pair, nats in each])
        self.controller.follow(self.outside[-1][self.controlled])
        return self.noise(ids, limited)
