"""A world of SAELens's generator, built here from its public classes and our numbers."""

from typing import TYPE_CHECKING

import torch

from sae.base import UserError
from sae.synthetic.config import WorldConfig
from sae.synthetic.world import BLOCK_ROWS, Block, Codes, World

if TYPE_CHECKING:
    from sae_lens.synthetic import SyntheticModel

_STREAMS, _BLOCKS = 4, 2**32
_STEPS, _RATE = 100, 3e-4
"""How long and how fast SynthSAEBench-16k's directions are pushed apart."""


class SaelensWorld(World):
    """SynthSAEBench's generator with the numbers of a `WorldConfig`; nothing is downloaded.

    It differs from ours: correlated features include children, a child's rate is raised to make
    up for its parent's only on average, and sizes below zero are cut off, so that its rates are
    known by counting alone. Rows come from torch's own random numbers, which are put back.

    Raises:
        UserError: if SAELens is not installed, or cannot make such a world.
    """

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        self._model = _model(config)
        self.directions = self._model.feature_dict.feature_vectors.detach().float()
        self.bias = self._model.feature_dict.bias.detach().float()

    def block(self, stream: int, number: int) -> Block:
        seed = (self.config.seed * _STREAMS + stream) * _BLOCKS + number
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            x, acts = self._model.sample_with_features(BLOCK_ROWS)
        rows, features = acts.nonzero(as_tuple=True)
        row_ends = torch.zeros(BLOCK_ROWS + 1, dtype=torch.int64)
        row_ends[1:] = torch.bincount(rows, minlength=BLOCK_ROWS).cumsum(0)
        codes = Codes(row_ends, features.int(), acts[rows, features], self.config.n_features)
        return Block(x.float(), codes)


def _model(config: WorldConfig) -> "SyntheticModel":
    try:
        from sae_lens import synthetic
    except ImportError as error:
        raise UserError(
            "world.source=saelens needs SAELens; install it with: pip install sae-lens"
        ) from error
    trees = synthetic.HierarchyConfig(
        total_root_nodes=max(1, config.n_roots),
        branching_factor=config.branching,
        max_depth=config.depth,
        mutually_exclusive_portion=config.exclusive,
        compensate_probabilities=True,
        scale_children_by_parent=config.scale_children,
    )
    spread = synthetic.OrthogonalizationConfig(num_steps=_STEPS, lr=_RATE)
    correlation = synthetic.LowRankCorrelationConfig(config.rank, config.correlation)
    std: object = config.std
    if config.std_spread:
        std = synthetic.FoldedNormalMagnitudeConfig(config.std, config.std_spread)
    settings = synthetic.SyntheticModelConfig(
        num_features=config.n_features,
        hidden_dim=config.d_in,
        firing_probability=synthetic.ZipfianFiringProbabilityConfig(
            exponent=config.zipf, max_prob=config.max_rate, min_prob=config.min_rate
        ),
        hierarchy=trees if config.n_roots else None,
        orthogonalization=spread if config.tight else None,
        correlation=correlation if config.rank and config.correlation else None,
        mean_firing_magnitudes=synthetic.LinearMagnitudeConfig(
            start=config.first_mean, end=config.last_mean
        ),
        std_firing_magnitudes=std,
        bias=config.bias,
        seed=config.seed,
    )
    return synthetic.SyntheticModel(settings)
