"""What of a world stays: directions, rates, trees, correlations and sizes of its features."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from sae.core.nulls import random_directions
from sae.synthetic.config import MOST_CHILDREN, WorldConfig

NONE = -1
_ROUNDS = 20
_OWN = 0.01
"""Variance of a feature that hidden causes never decide, at least."""


@dataclass(frozen=True, slots=True)
class Trees:
    """Which feature is whose child; children of a parent follow each other."""

    parent: Int[ndarray, " feature"]
    """-1 for a feature without."""
    first_child: Int[ndarray, " feature"]
    n_children: Int[ndarray, " feature"]
    exclusive: Bool[ndarray, " feature"]
    """Whether the children of each parent exclude each other."""


@dataclass(frozen=True, slots=True)
class Structure:
    """All of a world but the rows."""

    directions: Float[Tensor, "feature d_in"]
    """Directions of the features, each of norm one."""
    bias: Float[Tensor, " d_in"]
    trees: Trees
    rates: Float[ndarray, " feature"]
    """Share of the rows in which each feature fires."""
    loadings: Float[ndarray, "feature rank"]
    """On hidden causes, of features without a parent; zero for the others."""
    means: Float[ndarray, " feature"]
    stds: Float[ndarray, " feature"]


def structure_of(config: WorldConfig) -> Structure:
    """Return what the seed of a configuration decides."""
    rng = np.random.default_rng([config.seed, 0])
    n = config.n_features
    trees = _trees(config, rng)
    loadings = config.correlation * rng.standard_normal((n, config.rank))
    loadings[trees.parent != NONE] = 0
    # No feature may be decided by the causes alone.
    norms = np.linalg.norm(loadings, axis=1, keepdims=True)
    loadings *= np.minimum(1, np.sqrt(1 - _OWN) / np.maximum(norms, 1e-30))
    bias = torch.from_numpy(rng.standard_normal(config.d_in)).float()
    return Structure(
        directions=_directions(config),
        bias=bias * (config.bias / bias.norm()),
        trees=trees,
        rates=_rates(config, trees),
        loadings=loadings,
        means=np.linspace(config.first_mean, config.last_mean, n),
        stds=np.abs(config.std + config.std_spread * rng.standard_normal(n)),
    )


def zipf_rates(config: WorldConfig) -> Float[ndarray, " feature"]:
    """Return `min + (max − min) (r^−a − n^−a) / (1 − n^−a)` of ranks r from 1 to n.

    The form is SynthSAEBench's (SAELens 6.54, `zipfian_firing_probabilities`).
    """
    powers = np.arange(1, config.n_features + 1, dtype=np.float64) ** -config.zipf
    if len(powers) == 1:
        return np.array([config.max_rate])
    share: Float[ndarray, " feature"] = (powers - powers[-1]) / (powers[0] - powers[-1])
    return config.min_rate + (config.max_rate - config.min_rate) * share


def _trees(config: WorldConfig, rng: np.random.Generator) -> Trees:
    n = config.n_features
    parent, first, count = np.full(n, NONE), np.zeros(n, np.int64), np.zeros(n, np.int64)
    generation, free = range(config.n_roots), config.n_roots
    for _ in range(config.depth):
        begun = free
        for one in generation:
            first[one], count[one] = free, min(config.branching, n - free)
            parent[free : free + count[one]] = one
            free += count[one]
        generation = range(begun, free)
    parents = np.flatnonzero(count > 1)
    exclusive = np.zeros(n, bool)
    exclusive[rng.permutation(parents)[: int(config.exclusive * len(parents))]] = True
    return Trees(parent, first, count, exclusive)


def _rates(config: WorldConfig, trees: Trees) -> Float[ndarray, " feature"]:
    """Return Zipf's rates, lower where a parent does not fire often enough for them."""
    rates = zipf_rates(config)
    for one in np.flatnonzero(trees.n_children):
        children = slice(trees.first_child[one], trees.first_child[one] + trees.n_children[one])
        room = MOST_CHILDREN * rates[one]
        if trees.exclusive[one]:
            rates[children] *= min(1, room / rates[children].sum())
        else:
            rates[children] = np.minimum(rates[children], room)
    return rates


def _directions(config: WorldConfig) -> Float[Tensor, "feature d_in"]:
    """Return directions, spread to a tight frame if they are to be.

    The sum of squared cosines is smallest where the frame is tight, `Dᵀ D = (n / d) I`
    (Benedetto and Fickus 2003). It is approached by turns: the nearest tight frame,
    `D (Dᵀ D)^(−1/2)`, and rows of norm one (Tropp and others 2005).
    """
    found = random_directions(config.n_features, config.d_in, config.seed)
    if not config.tight or config.n_features <= 1:
        return found
    wide = found.double()
    few = config.n_features < config.d_in
    for _ in range(_ROUNDS):
        # Of few features the rows are to be orthogonal, of many the columns.
        gram = wide @ wide.t() if few else wide.t() @ wide
        values, vectors = torch.linalg.eigh(gram)
        root = (vectors * values.rsqrt()) @ vectors.t()
        wide = torch.nn.functional.normalize(root @ wide if few else wide @ root, dim=1)
    return wide.float()
