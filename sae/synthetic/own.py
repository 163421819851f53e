"""Worlds of our own generator, and the choice of a generator."""

import numpy as np
import torch

from sae.synthetic.config import WorldConfig
from sae.synthetic.kernels import add_up, by_row, descend, fire
from sae.synthetic.saelens import SaelensWorld
from sae.synthetic.structure import NONE, structure_of
from sae.synthetic.world import BLOCK_ROWS, Block, Codes, World


class OwnWorld(World):
    """A world of our own generator.

    Features without a parent fire by a Gaussian copula: each has its rate exactly, and hidden
    causes make some fire together. A child fires only where its parent does, by a chance that
    gives it its rate exactly too. So the mean number of features in a row is `rates.sum()`.
    Sizes are `|mean + std ε|`, so that what fires is never zero.
    """

    def __init__(self, config: WorldConfig) -> None:
        from scipy.stats import norm

        self.config = config
        found = self.structure = structure_of(config)
        self.directions, self.bias, self.rates = found.directions, found.bias, found.rates
        self._free = np.flatnonzero(found.trees.parent == NONE)
        above = found.rates[found.trees.parent]
        self._chances = np.where(found.trees.parent == NONE, 0, found.rates / above)
        self._thresholds = norm.isf(found.rates)
        self._own = np.sqrt(1 - np.square(found.loadings).sum(1))

    def block(self, stream: int, number: int) -> Block:
        rng = np.random.default_rng([self.config.seed, 1, stream, number])
        found, trees = self.structure, self.structure.trees
        causes = rng.standard_normal((BLOCK_ROWS, self.config.rank))
        rows, features = fire(
            rng, causes, self._free, self.rates, self._thresholds, found.loadings, self._own
        )
        ends, free = by_row(BLOCK_ROWS, rows, features)
        row_ends, features, sizes = descend(
            rng,
            ends,
            free,
            trees.first_child,
            trees.n_children,
            trees.exclusive,
            self._chances,
            found.means,
            found.stds,
            self.config.scale_children,
        )
        x = self.bias.repeat(BLOCK_ROWS, 1)
        add_up(row_ends, features, sizes, self.directions.numpy(), x.numpy())
        ends, fired, values = map(torch.from_numpy, (row_ends, features, sizes))
        return Block(x, Codes(ends, fired, values, self.config.n_features))


def open_world(config: WorldConfig) -> World:
    """Return the world of a configuration, of our own generator or of SAELens's.

    Raises:
        UserError: for SAELens's where it is not installed.
    """
    if config.source == "saelens":
        return SaelensWorld(config)
    return OwnWorld(config)
