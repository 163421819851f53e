"""Dials: every feature scored by what it does to the model's output, each beside its nulls.

A feature is added to a few neutral texts at all positions but the first, in a batch with random
directions and random features, and what that does to the next-token probabilities is compared.
At the *stated dose* every vector has the same norm. The *recommended dose* of each costs about
the same instead: a stated KL from the unsteered model's next-token probabilities. It is found
on some texts and measured on others.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.analysis.shards import Text
from sae.analysis.work import Arrays, Work
from sae.base import progress, require, require_at_least
from sae.core.effects import (
    confidence,
    cross_entropy,
    kl_divergence,
    log_mass,
    output_score,
    scores_of_many,
)
from sae.core.nulls import random_directions
from sae.dictionary import Dictionary
from sae.edits.copies import LEAST_COST, Copies
from sae.models import LanguageModel, locate

_FIRST_READ = 3
"""Positions before which nothing is read, as there is too little to go on."""
_FEW_READ = 4
"""Positions that are read to choose which features to score."""
_MOST_NORM = 2.0
"""No recommended dose adds a vector longer than this, in mean norms of the activations."""
_AIM = 0.8
"""Share of the cost that is allowed that a recommended dose is to have on the texts that it is
found on, for it costs a little more or less on others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DialConfig:
    """Score features by what they do to the model's output, beside what chance does."""

    n_features: int | None = 256
    """Number of features to score. Those are chosen whose promoted tokens rise most after one
    text that is used for nothing else. `null` scores every feature that fires, which takes
    about a minute for every 300 features of a small model on two cores, and 0 scores none."""
    stated_dose: float = 0.25
    """Norm of the vector that is added when features are compared at one dose, as a share of
    the mean norm of the activations."""
    max_cost: float = 0.1
    """Highest cost of a recommended dose, in nats a token: the KL divergence from the
    next-token probabilities of the unsteered model on neutral text. 0.1 is about a tenth more
    perplexity."""
    n_nulls: int = 32
    """Number of random directions, and as many random features, that every score is compared
    with."""
    n_texts: int = 4
    """Number of neutral texts on which doses are found, and as many others on which they are
    measured."""
    n_tokens: int = 10
    """Number of tokens of each neutral text."""

    def __post_init__(self) -> None:
        require_at_least(self, n_nulls=2, n_texts=1, n_tokens=_FIRST_READ + 2)
        require(
            self.n_features is None or self.n_features >= 0,
            f"n_features={self.n_features} is negative; give a number, 0 for none or null for "
            "every feature that fires",
        )
        for name in ("stated_dose", "max_cost"):
            value = getattr(self, name)
            require(0 < value < 100, f"{name}={value}; give a number above 0, such as 0.05")


Neutral = Int[Tensor, "text position"]


def neutral_texts(text: Text, config: DialConfig, seed: int) -> Neutral:
    """Draw beginnings of sequences, each with the token that follows, of different documents.

    The first is to choose features on, the next half to find doses on, the last to measure on.

    Raises:
        UserError: if there are too few.
    """
    n, n_tokens = 1 + 2 * config.n_texts, config.n_tokens + 1
    require(
        text.context_size >= n_tokens,
        f"dials.n_tokens={config.n_tokens} and the token that follows them do not fit into "
        f"a sequence of {text.context_size} tokens; give fewer",
    )
    owners = text.documents.reshape(text.n_sequences, -1)[:, :n_tokens]
    tokens = text.tokens.reshape(text.n_sequences, -1)[:, :n_tokens]
    # The first may be the token that begins a text, which is no text itself.
    whole = (owners[:, 1:] == owners[:, 1:2]).all(1) & (owners[:, 1] >= 0)
    chosen: list[int] = []
    used: set[int] = set()
    for i in np.random.default_rng(seed).permutation(np.flatnonzero(whole)).tolist():
        if len(chosen) < n and int(owners[i, 1]) not in used:
            used.add(int(owners[i, 1]))
            chosen.append(i)
    require(
        len(chosen) == n,
        f"the text has {len(chosen)} documents that begin a sequence with {n_tokens} tokens "
        f"of their own, and dials.n_texts={config.n_texts} needs {n}",
    )
    return torch.from_numpy(tokens[chosen].astype(np.int64))


@dataclass(frozen=True, slots=True)
class Candidates:
    """The features that are scored, among all of a dictionary."""

    dictionary: Dictionary
    chosen: Int[np.ndarray, " feature"]
    max_activation: Float[np.ndarray, " d_sae"]
    promoted: Int[np.ndarray, "d_sae token"]
    """Ids of the tokens that each feature promotes."""
    peaks: Int[np.ndarray, "d_sae context"]
    """Tokens at the peaks of each feature's top contexts; −1 for none."""

    def units(self, features: Int[np.ndarray, " feature"]) -> Float[Tensor, "feature d_out"]:
        """Return what strength 1 of some features adds."""
        highest = torch.from_numpy(self.max_activation[features].astype(np.float32))
        w_dec = self.dictionary.W_dec[features].float()
        return w_dec * highest.to(w_dec)[:, None]

    def input_score(
        self,
        features: Int[np.ndarray, " feature"],
        promoted_by: Int[np.ndarray, " feature"],
    ) -> Float[np.ndarray, " feature"]:
        """Return the share of top contexts whose peak is among the tokens that others promote.

        With the features' own this is the input score of Arad et al. 2025.
        """
        peaks, promoted = self.peaks[features], self.promoted[promoted_by]
        agrees = (peaks[:, :, None] == promoted[:, None, :]).any(2)
        found: Float[np.ndarray, " feature"] = agrees.sum(1) / np.maximum(
            1, (peaks >= 0).sum(1)
        )
        return found

    @property
    def alive(self) -> Int[np.ndarray, " feature"]:
        """The features that fire and write something."""
        writes = torch.linalg.vector_norm(self.dictionary.W_dec.float(), dim=1) > 0
        found: Int[np.ndarray, " feature"] = np.flatnonzero(
            (self.max_activation > 0) & writes.cpu().numpy()
        )
        return found

    def random_features(self, n: int, seed: int) -> Int[np.ndarray, " null"]:
        """Draw features that fire, one more than are needed: none is its own null."""
        drawn: Int[np.ndarray, " null"] = np.random.default_rng(seed).permutation(self.alive)
        return drawn[: n + 1]


@dataclass(frozen=True, slots=True)
class Bench:
    """All vectors that are compared: features that are scored, then those of chance."""

    copies: Copies
    units: Float[Tensor, "vector d_out"]
    """What strength 1 adds."""
    lengths: Float[Tensor, " vector"]
    """Norm of what strength 1 adds, over the mean norm of the activations."""
    own: Int[Tensor, "feature token"]
    """Tokens that the features to score promote."""

    def measure(
        self, text: Int[Tensor, " position"], strengths: Float[Tensor, " vector"]
    ) -> Arrays:
        """Return what the vectors change after one text, with the token that follows it.

        Means over positions: `score` and `mass` of (feature), the same of chance's vectors as
        `null_score` and `null_mass` of (vector, feature), and `confidence`, `ce` and `kl` of
        (vector); and `plain_score` (feature), the output score before any change.
        """
        text = text.to(self.own.device)
        n_read, n_scored = len(text) - 1 - _FIRST_READ, len(self.own)
        parts: list[dict[str, Tensor]] = []
        vectors = strengths.to(self.units)[:, None] * self.units
        for some, plain, log_probs in self.copies.log_probs(text[:-1], vectors, n_read):
            if not parts:
                scores, masses = (f.t() for f in scores_of_many(plain[0], self.own))
                before = confidence(plain), cross_entropy(plain, text[None, -n_read:])
            theirs = slice(some.start, max(some.start, min(some.stop, n_scored)))
            features = log_probs[: theirs.stop - theirs.start]
            own = self.own[theirs, None]
            following = text[-n_read:].expand(len(log_probs), -1)
            by_chance = [scores_of_many(one, self.own) for one in log_probs[len(features) :]]
            chance_scores = [(score.t() - scores).mean(1) for score, _ in by_chance]
            chance_masses = [(mass.t() - masses).mean(1) for _, mass in by_chance]
            none = scores.new_zeros(0, n_scored)
            parts.append(
                {
                    "score": (output_score(features, own) - scores[theirs]).mean(1),
                    "mass": (log_mass(features, own) - masses[theirs]).mean(1),
                    "null_score": torch.stack(chance_scores) if by_chance else none,
                    "null_mass": torch.stack(chance_masses) if by_chance else none,
                    "confidence": (confidence(log_probs) - before[0]).mean(1),
                    "ce": (cross_entropy(log_probs, following) - before[1]).mean(1),
                    "kl": kl_divergence(plain, log_probs).mean(1),
                }
            )
        found = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        found["plain_score"] = scores.mean(1)
        return {key: value.cpu().double().numpy() for key, value in found.items()}


def _place(model: LanguageModel, some: Candidates, neutral: Neutral) -> tuple[Copies, float]:
    """Return where the dictionary writes, and the mean norm of the activations there."""
    write = some.dictionary.writes[0]
    copies = Copies(model, locate(model.module, write.place), write.normalisation)
    return copies, copies.typical_norm([text[:-1] for text in neutral])


def choose_to_score(
    config: DialConfig, model: LanguageModel, some: Candidates, neutral: Neutral, work: Work
) -> Int[np.ndarray, " feature"]:
    """Return the features to score, of all that fire: those whose tokens rise most.

    All are added to the first text at the stated dose; nothing else is measured on it, so that
    choosing by it makes no score too high.
    """
    alive, n = some.alive, config.n_features
    if n is None or len(alive) <= n:
        return alive
    copies, typical = _place(model, some, neutral)
    text = neutral[0, : min(len(neutral[0]) - 1, _FIRST_READ + _FEW_READ)]
    n_read = len(text) - _FIRST_READ

    def shifts() -> Arrays:
        units = some.units(alive).to(model.device)
        norms = torch.linalg.vector_norm(units, dim=1, keepdim=True)
        vectors = config.stated_dose * typical * units / norms
        own = torch.from_numpy(some.promoted[alive].astype(np.int64)).to(model.device)
        found = []
        with progress(len(alive), "dials: choosing", "feature") as bar:
            for which, plain, after in copies.log_probs(text, vectors, n_read):
                theirs, before = own[which, None], plain.expand_as(after)
                rise = log_mass(after, theirs) - log_mass(before, theirs)
                found.append(rise.mean(1).cpu().double())
                bar.update(len(after))
        return {"shift": torch.cat(found).numpy()}

    best = np.argsort(-work.once("dials-choosing", shifts)["shift"], kind="stable")[:n]
    chosen: Int[np.ndarray, " feature"] = np.sort(alive[best])
    return chosen


def bench_of(
    config: DialConfig, model: LanguageModel, some: Candidates, neutral: Neutral, seed: int
) -> Bench:
    """Put the vectors together: features, random directions, random features."""
    copies, typical = _place(model, some, neutral)
    device = model.device
    features = np.concatenate([some.chosen, some.random_features(config.n_nulls, seed)])
    units = some.units(features).to(device)
    n = len(some.chosen)
    chance = typical * random_directions(config.n_nulls, units.shape[1], seed).to(device)
    units = torch.cat([units[:n], chance, units[n:]])
    own = torch.from_numpy(some.promoted[some.chosen].astype(np.int64)).to(device)
    lengths = torch.linalg.vector_norm(units, dim=1) / typical
    return Bench(copies, units, lengths.cpu().double(), own)


@dataclass(frozen=True, slots=True)
class Measured:
    """Effects of all vectors at the stated dose, and at doses that cost about the same."""

    stated: Arrays
    recommended: Arrays
    stated_strengths: Float[np.ndarray, " vector"]
    recommended_strengths: Float[np.ndarray, " vector"]


def measure_doses(config: DialConfig, bench: Bench, neutral: Neutral, work: Work) -> Measured:
    """Find doses on the first half of the texts, and measure them on the second."""
    n, half = len(bench.units), len(neutral) // 2
    with progress(2 * half * n, "dials", "vector") as bar:

        def measured(name: str, texts: Neutral, strengths: Tensor) -> Arrays:
            found = []
            for i, text in enumerate(texts):
                compute = partial(bench.measure, text, strengths)
                found.append(work.once(f"dials-{name}-{i}", compute))
                bar.update(n)
            return {key: np.mean([one[key] for one in found], axis=0) for key in found[0]}

        stated = config.stated_dose / bench.lengths
        at_stated = measured("stated", neutral[:half], stated)
        # KL grows with the square of a dose that is not large.
        costs = torch.from_numpy(at_stated["kl"]).clamp_min(LEAST_COST)
        cheaper = stated * (_AIM * config.max_cost / costs).sqrt()
        recommended = torch.minimum(cheaper, _MOST_NORM / bench.lengths)
        at_recommended = measured("recommended", neutral[half:], recommended)
    return Measured(at_stated, at_recommended, stated.numpy(), recommended.numpy())
