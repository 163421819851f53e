"""Stability: which features another seed of the same training finds again.

Features are matched one to one by the directions that they write, and once more by those that
they read (Paulo and Belrose 2025, arXiv 2501.16615); features that fire on none of the rows are
left out. Two things make unrelated dictionaries match: rows fill few directions, and our
trainings begin with directions that are half rows of the same text. So the floor is the higher
of two: random directions with the covariance of the rows, and the first directions of two fresh
trainings.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.architectures.directions import initial_directions
from sae.base import require
from sae.core.matching import Match, match_many
from sae.core.nulls import correlated_directions
from sae.core.scaling import InputScaling
from sae.dictionary import Dictionary
from sae.dictionary.files import read_record
from sae.evaluation.averages import mean_finding
from sae.findings import Finding
from sae.run import Run

SAME = 0.7
"""Cosine from which two features count as the same (arXiv 2501.16615)."""
_BATCH = 4096

Rows = Float[Tensor, "row d_in"]
PerFeature = Float[Tensor, " d_sae"]


@dataclass(frozen=True, slots=True)
class Stability:
    """Agreement of two dictionaries for each feature of the first; NaN where it is dead."""

    decoder: PerFeature
    """Cosine of each feature's decoder direction and that of its match, without its sign."""
    agrees: PerFeature
    """1 where encoders match with the same feature, 0 where not."""
    shared: PerFeature
    """1 where they do and both cosines are at least `SAME`, 0 where not."""


@dataclass(frozen=True, slots=True)
class Floor:
    """Agreement that unrelated directions reach."""

    mean: float
    shared: float
    """Share of the pairs with a cosine of at least `SAME`."""
    of: str


def reseeded(run: Run, name: str, dictionary: Dictionary) -> dict[str, Dictionary]:
    """Return a run's other dictionaries that differ from one in nothing but their seeds."""
    training, found = dictionary.record.training, {}
    for other in run.dictionary_names if training else ():
        # Their records are read first: a run may hold many, and weights are large.
        record = read_record(run.dictionary(other)).training
        if training and record and other != name and record.is_reseeded(training):
            _, found[other] = run.load(other)
    return found


def stability(
    dictionary: Dictionary, others: Mapping[str, Dictionary], x: Rows, *, seed: int = 0
) -> tuple[list[Finding], PerFeature]:
    """Return how far other seeds agree, and each feature's stability, the mean over them.

    Args:
        others: of the same training with other seeds, by name; without any there is no figure.
        x: rows that say which features are alive, and how directions are spread by chance.
        seed: of the random directions.
    """
    keys = ("stability", "stability_shared", "stability_agreement")
    if not others:
        why = "the run holds no dictionary of the same training with another seed"
        nothing = torch.full((dictionary.d_sae,), torch.nan)
        return [Finding(key=key, why_not=why) for key in keys], nothing
    live = alive(dictionary, x)
    if not live.any():
        why = "none of its features fires on these rows"
        nothing = torch.full((dictionary.d_sae,), torch.nan)
        return [Finding(key=key, why_not=why) for key in keys], nothing
    pairs = [compare(dictionary, other, live, alive(other, x)) for other in others.values()]
    floor = chance(int(live.sum()), x, seed)
    figures = {
        "stability": ([pair.decoder for pair in pairs], floor.mean, floor.of),
        "stability_shared": ([pair.shared for pair in pairs], floor.shared, floor.of),
        "stability_agreement": ([pair.agrees for pair in pairs], 1 / int(live.sum()), "chance"),
    }
    means = {key: torch.stack(figures[key][0]).nanmean(0) for key in keys}
    found = [
        mean_finding(
            key,
            means[key],
            unit="features",
            floor=figures[key][1],
            floor_of=figures[key][2],
            of=", ".join(others),
        )
        for key in keys
    ]
    return found, means["stability"]


def alive(dictionary: Dictionary, x: Rows) -> Bool[Tensor, " d_sae"]:
    """Return which features fire on any of the rows."""
    device, fired = dictionary.W_enc.device, torch.zeros(dictionary.d_sae, dtype=torch.int64)
    for part in torch.split(x, _BATCH):
        active = dictionary.encode_sparse(part.to(device).float())
        fired += active.support.counts().cpu()
    return fired > 0


def compare(
    first: Dictionary,
    second: Dictionary,
    first_alive: Bool[Tensor, " d_sae"],
    second_alive: Bool[Tensor, " d_other"],
) -> Stability:
    """Match the live features of two dictionaries, by decoder and by encoder."""
    require(
        first.d_out == second.d_out and first.d_in == second.d_in,
        f"dictionaries of width {first.d_in} and {second.d_in} cannot be compared, because "
        "their directions have different numbers of coordinates",
    )
    ours, theirs = first_alive.nonzero()[:, 0], second_alive.nonzero()[:, 0]
    decoder, encoder = (
        match_many(a[ours].cpu(), b[theirs].cpu())
        for a, b in ((first.W_dec, second.W_dec), (first.W_enc.t(), second.W_enc.t()))
    )
    n = len(ours)
    cosine, partner = _by_feature(decoder, n)
    read_cosine, read_partner = _by_feature(encoder, n)
    agrees = (partner == read_partner) & (partner >= 0)
    shared = agrees & (cosine >= SAME) & (read_cosine >= SAME)

    def spread(values: Tensor) -> Tensor:
        found = torch.full((first.d_sae,), torch.nan)
        found[ours] = values.float()
        return found

    return Stability(spread(cosine), spread(agrees), spread(shared))


def _by_feature(match: Match, n: int) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Return cosine and partner of each feature; 0 and −1 where none was left for it."""
    cosine, partner = torch.zeros(n), torch.full((n,), -1)
    cosine[match.first] = match.cosine.float().clamp(-1, 1)
    partner[match.first] = match.second
    return cosine, partner


def chance(n: int, x: Rows, seed: int = 0) -> Floor:
    """Return what unrelated directions reach, the higher of two kinds: see the module."""
    floors = [
        Floor(match.mean, float((match.cosine >= SAME).double().mean()), of)
        for of, match in unrelated(n, x, seed).items()
    ]
    return max(floors, key=lambda floor: floor.mean)


def unrelated(
    n: int, x: Rows, seed: int = 0, *, n_second: int | None = None
) -> dict[str, Match]:
    """Return how two sets of unrelated directions match, by what they are: see the module.

    Args:
        n: directions in the first set.
        x: rows that say how directions are spread.
        seed: of the directions.
        n_second: directions in the second set, as many as in the first by default.
    """
    x = x.float().cpu()
    scaled = InputScaling.of(x)(x)
    sizes = n, n if n_second is None else n_second
    generators = [torch.Generator().manual_seed(seed + i) for i in range(2)]
    kinds = {
        "random directions with the covariance of the rows": [
            correlated_directions(size, x, seed + i) for i, size in enumerate(sizes)
        ],
        "first directions of two fresh trainings": [
            initial_directions(size, scaled, generator)
            for size, generator in zip(sizes, generators, strict=True)
        ],
    }
    return {of: match_many(first, second) for of, (first, second) in kinds.items()}
