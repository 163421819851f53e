"""How strong a sparsity penalty is: a coefficient with a warm-up, or whatever reaches an L0."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Of the controller. Its goal falls from 8 times the target to the target over the first 0.6 of
# the run: at the start L0 is far too high whatever the coefficient is, and a coefficient that
# tries to mend it at once ruins the directions (docs/log.md). The error is log(L0 / goal).
FIRST_GOAL = 8.0
GOAL_REACHED = 0.6
INTEGRAL_GAIN = 4e-2
PROPORTIONAL_GAIN = 3.0
# The most of an error that counts, so that a far start does not wind the integral up.
MOST_INTEGRATED = 0.3
MOST_PROPORTIONAL = 2.0


class Coefficient(nn.Module):
    """The penalty's weight over a run.

    Without `target_l0` the weight rises linearly to `final` over `warm_up` of the run. With
    it, `final` is where the weight starts, and after each step its logarithm moves by the
    logarithm of how far the batch's L0 is off: a proportional-integral controller.
    """

    def __init__(self, final: float, warm_up: float, target_l0: float | None) -> None:
        super().__init__()
        self.final = final
        self.warm_up = warm_up
        self.target_l0 = target_l0
        # Kept on the CPU in float64: the next step needs it there, and resuming needs its bits.
        self.log_scale = 0.0
        self.error = 0.0

    def get_extra_state(self) -> Float[Tensor, "..."]:
        """What a resumed run needs."""
        return torch.tensor([self.log_scale, self.error], dtype=torch.float64)

    def set_extra_state(self, state: Float[Tensor, "..."]) -> None:
        """Continue from `get_extra_state`."""
        self.log_scale, self.error = state.tolist()

    def at(self, progress: float) -> float:
        """The weight, `progress` (0 to 1) of the way through the run."""
        rising = min(1.0, progress / self.warm_up) if self.warm_up else 1.0
        return self.final * rising * math.exp(self.log_scale + PROPORTIONAL_GAIN * self.error)

    def observe(self, l0: float, progress: float) -> None:
        """Move towards the target, once the warm-up is over; `l0` is the step's."""
        if self.target_l0 is None or progress < self.warm_up:
            return
        goal = self.target_l0 * FIRST_GOAL ** max(0.0, 1 - progress / GOAL_REACHED)
        error = math.log(max(l0, 1e-3) / goal)
        self.error = _limited(error, MOST_PROPORTIONAL)
        self.log_scale += INTEGRAL_GAIN * _limited(error, MOST_INTEGRATED)


def _limited(value: float, most: float) -> float:
    return max(-most, min(most, value))
