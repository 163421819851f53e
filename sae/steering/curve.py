"""What a curve of effects over doses says in a few numbers."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Curve:
    """Effects of one arm over its doses; None is what cannot be told."""

    monotonicity: float | None
    """Spearman's rank correlation of dose and effect: 1 where each dose does more."""
    half_effect_strength: float | None
    """The dose above 0 that has half of the largest effect above 0, between measured ones."""
    asymmetry: float | None
    """Asymmetry of the largest dose of either sign, (up + down) / (|up| + |down|): 0 where the
    wrong sign does the opposite, 1 where it does nothing or the same."""
    break_strength: float | None
    """The first dose above 0 whose texts have less than half the different pairs of tokens."""


def curve_of(
    strengths: Float[Tensor, " dose"],
    effects: Float[Tensor, " dose"],
    distinct_2: Float[Tensor, " dose"],
) -> Curve:
    """Return the numbers of a curve; doses rise, and 0 may be among them."""
    return Curve(
        monotonicity=_monotonicity(strengths, effects),
        half_effect_strength=_half_effect(strengths, effects),
        asymmetry=_asymmetry(strengths, effects),
        break_strength=_break(strengths, distinct_2),
    )


def _monotonicity(strengths: Tensor, effects: Tensor) -> float | None:
    constant = bool((effects == effects[0]).all())
    if len(strengths) < 3 or constant or not bool(effects.isfinite().all()):
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(strengths.numpy(), effects.numpy()).statistic)


def _half_effect(strengths: Tensor, effects: Tensor) -> float | None:
    above = strengths > 0
    if not bool(above.any()) or float(effects[above].max()) <= 0:
        return None
    half = float(effects[above].max()) / 2
    last_x, last_y = 0.0, 0.0
    points: list[tuple[float, float]] = torch.stack([strengths, effects], 1)[above].tolist()
    for x, y in points:
        if y >= half:
            return last_x + (x - last_x) * (half - last_y) / (y - last_y)
        last_x, last_y = x, y
    return None


def _asymmetry(strengths: Tensor, effects: Tensor) -> float | None:
    largest = float(strengths.max())
    opposite = (strengths == -largest).nonzero().flatten()
    if largest <= 0 or not len(opposite):
        return None
    up, down = float(effects[strengths.argmax()]), float(effects[opposite[0]])
    size = abs(up) + abs(down)
    return (up + down) / size if size > 0 and math.isfinite(size) else None


def _break(strengths: Tensor, distinct_2: Tensor) -> float | None:
    unsteered = (strengths == 0).nonzero().flatten()
    if not len(unsteered):
        return None
    broken = (strengths > 0) & (distinct_2 < distinct_2[unsteered[0]] / 2)
    return float(strengths[broken].min()) if bool(broken.any()) else None
