"""Which features two dictionaries share, which only one has, and what chance would match.

Features that fire on none of the rows are left out. The others are matched one to one by the
directions that they write, and once more by those that they read (Paulo and Belrose 2025, arXiv
2501.16615). A feature of the first is
  shared     if both matches name the same feature, with a cosine of at least 0.7 in both,
  its own    if its match is no nearer than 99 of 100 matches of unrelated directions,
  in between otherwise.
Unrelated directions are of two kinds, see `sae.evaluation.stability`: random ones that are
spread as the rows are, and the first directions of two fresh trainings.

Trainings of one seed begin with the same directions in the same order, so that their features
match at equal numbers, whatever was learned. Where both dictionaries have as many features, the
match is therefore repeated without pairs of equal numbers: what is left owes nothing to that.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.base import require
from sae.cache.layout import ActivationCache
from sae.core.matching import EXACT_UP_TO, Match, cosines, match_many, matched
from sae.dictionary import Dictionary
from sae.evaluation.sample import sample_rows
from sae.evaluation.stability import SAME, Rows, alive, unrelated

_CHANCE = 0.99
"""Share of the matches of unrelated directions that a match has to be nearer than."""
KINDS = ("shared", "between", "own")


@dataclass(frozen=True, slots=True)
class Null:
    """What unrelated directions reach when they are matched."""

    of: str
    mean: float
    high: float
    """Cosine that 99 of 100 of their matches stay below."""
    shared: float
    """Share of their matches with a cosine of at least 0.7."""


@dataclass(frozen=True, slots=True)
class Side:
    """What of one dictionary is found in the other; an entry for each live feature."""

    feature: Int[Tensor, " live"]
    partner: Int[Tensor, " live"]
    """The feature that writes most nearly the same; −1 where none was left."""
    cosine: Float[Tensor, " live"]
    read_partner: Int[Tensor, " live"]
    read_cosine: Float[Tensor, " live"]
    kind: tuple[str, ...]
    """`shared`, `between` or `own`."""

    def share(self, kind: str) -> float:
        """Return the share of the live features that are of a kind."""
        return self.kind.count(kind) / len(self.kind)


@dataclass(frozen=True, slots=True)
class EqualNumbers:
    """How much of a match is of features with equal numbers, and what is left without it."""

    share: float
    """Share of the pairs whose features have the same number in both dictionaries."""
    by_chance: float
    """Share that a match of unrelated numbers has on average."""
    mean_without: float
    """Mean cosine where features of equal numbers may not be paired."""
    shared_without: float
    """Share of the first dictionary's live features that are then shared."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Two dictionaries beside each other."""

    first: Side
    second: Side
    nulls: tuple[Null, ...]
    equal_numbers: EqualNumbers | None
    """None where the dictionaries are of different sizes, or too large for an exact match."""

    def to_json(self) -> Mapping[str, object]:
        """Return the figures, without those of single features."""
        return {
            "n_live": [len(side.feature) for side in (self.first, self.second)],
            "mean_cosine": [float(side.cosine.double().mean()) for side in self.sides],
            "shares": [{kind: side.share(kind) for kind in KINDS} for side in self.sides],
            "nulls": [asdict(null) for null in self.nulls],
            "equal_numbers": None if self.equal_numbers is None else asdict(self.equal_numbers),
            "same": SAME,
        }

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both, the first dictionary's first."""
        return self.first, self.second


def compared(first: Dictionary, second: Dictionary, x: Rows, *, seed: int = 0) -> Compared:
    """Match the features of two dictionaries that read the same hook.

    Args:
        first: a dictionary.
        second: another one, of the same widths.
        x: rows that say which features are alive, and how directions are spread by chance.
        seed: of the unrelated directions.

    Raises:
        UserError: if no feature of one of them fires on the rows.
    """
    live = [alive(one, x).nonzero()[:, 0] for one in (first, second)]
    for which, own in zip(("first", "second"), live, strict=True):
        require(
            len(own) > 0,
            f"no feature of the {which} dictionary fires on any of the {len(x):,} rows; give "
            "a cache of text on which both fire",
        )
    written, read = (
        match_many(a[live[0]].cpu(), b[live[1]].cpu())
        for a, b in ((first.W_dec, second.W_dec), (first.W_enc.t(), second.W_enc.t()))
    )
    nulls = tuple(
        _null(of, match)
        for of, match in unrelated(len(live[0]), x, seed, n_second=len(live[1])).items()
    )
    bar = max(null.high for null in nulls)
    back = [_turned(match) for match in (written, read)]
    return Compared(
        _side(live[0], live[1], written, read, bar),
        _side(live[1], live[0], back[0], back[1], bar),
        nulls,
        _equal_numbers(first, second, live, written),
    )


def _equal_numbers(
    first: Dictionary, second: Dictionary, live: list[Int[Tensor, " live"]], written: Match
) -> EqualNumbers | None:
    """Return what of a match is of equal numbers, and what is found without those pairs."""
    sizes = [len(own) for own in live]
    if first.d_sae != second.d_sae or max(sizes) > EXACT_UP_TO:
        return None
    equal = live[0][:, None] == live[1][None, :]
    found = []
    for a, b in ((first.W_dec, second.W_dec), (first.W_enc.t(), second.W_enc.t())):
        similarity = cosines(a[live[0]], b[live[1]]).abs().cpu()
        # Less than any cosine: such a pair is taken only where nothing else is left.
        similarity[equal] = -1
        found.append(matched(similarity))
    side = _side(live[0], live[1], found[0], found[1], bar=-1)
    return EqualNumbers(
        share=float(equal[written.first, written.second].double().mean()),
        by_chance=float(equal.sum()) / (sizes[0] * sizes[1]),
        mean_without=float(found[0].cosine.clamp_min(0).double().mean()),
        shared_without=side.share("shared"),
    )


def compared_in(
    first: Dictionary, second: Dictionary, cache: ActivationCache, seed: int = 0
) -> tuple[Compared, int]:
    """Match two dictionaries on held-out rows of a cache; returns the number of rows too."""
    x, _ = sample_rows(first, cache, held_out=bool(cache.held_out.any()))
    return compared(first, second, x, seed=seed), len(x)


def _null(of: str, match: Match) -> Null:
    cosine = match.cosine.double()
    shared = float((cosine >= SAME).double().mean())
    return Null(of, match.mean, float(cosine.quantile(_CHANCE)), shared)


def _turned(match: Match) -> Match:
    return Match(match.second, match.first, match.cosine)


def _side(
    own: Int[Tensor, " live"],
    other: Int[Tensor, " other"],
    written: Match,
    read: Match,
    bar: float,
) -> Side:
    partner, cosine = _spread(written, own, other)
    read_partner, read_cosine = _spread(read, own, other)
    shared = (partner == read_partner) & (partner >= 0) & (cosine >= SAME)
    shared &= read_cosine >= SAME
    alone = cosine <= bar
    kinds = (
        "shared" if is_shared else "own" if is_alone else "between"
        for is_shared, is_alone in zip(shared.tolist(), alone.tolist(), strict=True)
    )
    return Side(own, partner, cosine, read_partner, read_cosine, tuple(kinds))


def _spread(
    match: Match, own: Int[Tensor, " live"], other: Int[Tensor, " other"]
) -> tuple[Int[Tensor, " live"], Float[Tensor, " live"]]:
    """Return partner and cosine of each own feature; −1 and 0 where none was left."""
    partner = torch.full((len(own),), -1)
    cosine = torch.zeros(len(own))
    partner[match.first] = other[match.second]
    cosine[match.first] = match.cosine.float().clamp(-1, 1)
    return partner, cosine


def columns_of(
    found: Compared, first: Mapping[int, str], second: Mapping[int, str]
) -> dict[str, list[object]]:
    """Return the columns of `matches.parquet`: both dictionaries' features, a record each.

    Args:
        found: the comparison.
        first: labels of the features of the first dictionary, by number; may be empty.
        second: those of the second.
    """
    parts = [
        _columns("first", found.first, first, second),
        _columns("second", found.second, second, first),
    ]
    return {name: parts[0][name] + parts[1][name] for name in parts[0]}


def _columns(
    name: str, side: Side, own: Mapping[int, str], other: Mapping[int, str]
) -> dict[str, list[object]]:
    features, partners = side.feature.tolist(), side.partner.tolist()
    return {
        "side": [name] * len(features),
        "feature": features,
        "label": [own.get(feature, "") for feature in features],
        "kind": list(side.kind),
        "partner": partners,
        "partner_label": [other.get(partner, "") for partner in partners],
        "cosine": side.cosine.tolist(),
        "read_partner": side.read_partner.tolist(),
        "read_cosine": side.read_cosine.tolist(),
    }
