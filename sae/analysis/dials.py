"""Dials: every feature scored by what it does to the model's output, each beside its nulls.

A feature is added to a few neutral texts at all positions but the first, in a batch with random
directions and random features, and what that does to the next-token probabilities is compared.
At the *stated dose* every vector has the same norm. The *recommended dose* of each costs about
the same instead: a stated KL from the unsteered model's next-token probabilities. It is found
on some texts and measured on others.
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
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
from sae.core.nulls import random_directions, rank_p, z_score
from sae.dictionary import Dictionary
from sae.edits.copies import LEAST_COST, Copies
from sae.models import LanguageModel, locate

_FIRST_READ = 3
"""Positions before which nothing is read, as there is too little to go on."""
_MOST_NORM = 2.0
"""No recommended dose adds a vector longer than this, in mean norms of the activations."""
_AIM = 0.8
"""Share of the cost that is allowed that a recommended dose is to have on the texts that it is
found on, for it costs a little more or less on others."""
LEAST_SHIFT = math.log(2)
"""A dial makes the tokens that it promotes at least twice as likely; what does less is a weak
one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DialConfig:
    """Score features by what they do to the model's output, beside what chance does."""

    n_features: int | None = 256
    """Number of features to score: those that steering would choose first. `null` scores every
    feature that fires, which takes a minute for about 300 of a small model on two cores; 0
    scores none."""
    stated_dose: float = 0.25
    """Norm of what is added to compare features at one dose, over the mean norm of the
    activations there."""
    max_cost: float = 0.1
    """What a recommended dose may cost: KL from the unsteered model's next-token probabilities
    on neutral text, nats a token. 0.1 is about a tenth more perplexity."""
    n_nulls: int = 32
    """Number of random directions, and of random features, to set beside every score."""
    n_texts: int = 4
    """Number of neutral texts to find doses on, and of others to measure them on."""
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

    Raises:
        UserError: if there are too few.
    """
    n, n_tokens = 2 * config.n_texts, config.n_tokens + 1
    require(
        text.context_size >= n_tokens,
        f"dials.n_tokens={config.n_tokens} and the one that follows are more than the "
        f"{text.context_size} of a sequence",
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
        f"the text has {len(chosen)} documents with a sequence that begins with {n_tokens} "
        f"tokens of it, and dials.n_texts={config.n_texts} takes {n}",
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

    def random_features(self, n: int, seed: int) -> Int[np.ndarray, " null"]:
        """Draw features that fire, one more than are needed: none is its own null."""
        alive = np.flatnonzero(self.max_activation > 0)
        drawn: Int[np.ndarray, " null"] = np.random.default_rng(seed).permutation(alive)
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


def bench_of(
    config: DialConfig, model: LanguageModel, some: Candidates, neutral: Neutral, seed: int
) -> Bench:
    """Put the vectors together: features, random directions, random features."""
    dictionary, write = some.dictionary, some.dictionary.writes[0]
    copies = Copies(model, locate(model.module, write.place), write.normalisation)
    typical, device = copies.typical_norm([text[:-1] for text in neutral]), model.device
    features = np.concatenate([some.chosen, some.random_features(config.n_nulls, seed)])
    highest = torch.from_numpy(some.max_activation[features].astype(np.float32))
    units = dictionary.W_dec[features].float().to(device) * highest.to(device)[:, None]
    n = len(some.chosen)
    chance = typical * random_directions(config.n_nulls, units.shape[1], seed).to(device)
    units = torch.cat([units[:n], chance, units[n:]])
    own = torch.from_numpy(some.promoted[some.chosen].astype(np.int64)).to(device)
    lengths = torch.linalg.vector_norm(units, dim=1) / typical
    return Bench(copies, units, lengths.cpu().double(), own)


@dataclass(frozen=True, slots=True)
class Measured:
    """What all vectors do at the stated dose, and at one that costs each about the same."""

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


@dataclass(frozen=True, slots=True)
class Dials:
    """What was found of the features that were scored."""

    columns: dict[str, object]
    """Columns of `features.parquet`, not a number where a feature was not scored."""
    n_scored: int
    n_dials: int
    n_weak: int
    median_cost: float | None
    """Of the dials' recommended doses, on texts that they were not found on."""


def verdicts(config: DialConfig, some: Candidates, found: Measured, seed: int) -> Dials:
    """Set every score beside its nulls, and say which features are dials."""
    n, n_nulls = len(some.chosen), config.n_nulls
    drawn = some.random_features(n_nulls, seed)

    def nulls(values: Float[np.ndarray, " *of"]) -> tuple[Tensor, Tensor]:
        """Split chance's figures, those of (vector) for all features the same."""
        table = torch.from_numpy(values)
        table = table[-n_nulls - len(drawn) :]
        table = table if table.dim() == 2 else table[:, None].expand(-1, n)
        return table[:n_nulls], _without_itself(table[n_nulls:], drawn, some.chosen)

    columns: dict[str, Tensor] = {}
    stated, recommended = found.stated, found.recommended
    for name, own, null, base in (
        ("output_score", "score", "null_score", "plain_score"),
        ("token_shift", "mass", "null_mass", None),
        ("confidence_change", "confidence", "confidence", None),
        ("delta_ce", "ce", "ce", None),
        ("kl", "kl", "kl", None),
    ):
        offset = torch.from_numpy(stated[base]) if base else torch.zeros(n).double()
        values = torch.from_numpy(stated[own][:n]) + offset
        columns[name] = values
        for kind, chance in zip(("direction", "feature"), nulls(stated[null]), strict=True):
            columns[f"{name}_{kind}_mean"] = chance.mean(0) + offset
            columns[f"{name}_{kind}_z"] = z_score(values, chance + offset)
            columns[f"{name}_{kind}_p"] = rank_p(values, chance + offset)
    shift = torch.from_numpy(recommended["mass"])
    shifts = torch.cat(nulls(recommended["null_mass"]))
    columns |= {
        "dial_score": shift,
        "dial_score_null": shifts.amax(0),
        "dial_score_p": rank_p(shift, shifts),
        "dial_strength": torch.from_numpy(found.recommended_strengths[:n]),
        "dial_rise": torch.from_numpy(recommended["score"]),
        "dial_rise_null": torch.cat(nulls(recommended["null_score"])).amax(0),
        "dial_kl": torch.from_numpy(recommended["kl"][:n]),
        "dial_delta_ce": torch.from_numpy(recommended["ce"][:n]),
        "stated_strength": torch.from_numpy(found.stated_strengths[:n]),
    }
    by_others = [some.input_score(some.chosen, np.full(n, other)) for other in drawn[:n_nulls]]
    columns["input_score"] = torch.from_numpy(some.input_score(some.chosen, some.chosen))
    columns["input_score_feature_mean"] = torch.from_numpy(np.mean(by_others, axis=0))
    beyond = (shift > columns["dial_score_null"]).numpy()
    is_dial = beyond & (shift >= LEAST_SHIFT).numpy()
    verdict = np.where(is_dial, "dial", np.where(beyond, "weak", "none"))
    cost = recommended["kl"][:n][is_dial]
    return Dials(
        _spread_out(columns, verdict, some),
        n_scored=n,
        n_dials=int(is_dial.sum()),
        n_weak=int((beyond & ~is_dial).sum()),
        median_cost=float(np.median(cost)) if len(cost) else None,
    )


def _without_itself(
    table: Float[Tensor, "drawn feature"],
    drawn: Int[np.ndarray, " drawn"],
    chosen: Int[np.ndarray, " feature"],
) -> Float[Tensor, "null feature"]:
    """Return the random features' figures beside each feature, one fewer, itself left out."""
    is_itself = torch.from_numpy(drawn[:, None] == chosen)
    # One that was not drawn leaves out the last.
    is_itself[-1] |= ~is_itself.any(0)
    return table.t()[~is_itself.t()].view(len(chosen), -1).t()


def _spread_out(
    columns: dict[str, Tensor], verdict: Shaped[np.ndarray, " feature"], some: Candidates
) -> dict[str, object]:
    """Return columns of all features of the dictionary."""
    d_sae = len(some.max_activation)
    told = np.full(d_sae, "", dtype=object)
    told[some.chosen] = verdict
    found: dict[str, object] = {"dial_verdict": told.tolist()}
    for name, values in columns.items():
        column = np.full(d_sae, np.nan, np.float32)
        column[some.chosen] = values.numpy()
        found[name] = column
    return found
