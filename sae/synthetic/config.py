"""What a world of known features is made of."""

from dataclasses import dataclass

from sae.base import require, require_at_least

SOURCES = ("own", "saelens")
MOST_CHILDREN = 0.9
"""Of the rows in which a parent fires, the share in which children that exclude each other may
fire together, or one child by itself. With all of them no code would need the parent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """Features with known directions, and how they fire: SynthSAEBench's model, any size.

    Feature 0 is the most frequent one. The first features are the roots of trees, and their
    descendants follow, one generation after another (Chanin and Garriga-Alonso 2026, arXiv
    2602.14687). Defaults are a small world for two processor cores.
    """

    d_in: int = 64
    """Width of the activations."""
    n_features: int = 512
    """Number of true features. If there are more than `d_in`, they are in superposition."""
    tight: bool = True
    """Spread the directions so that the sum of their squared cosines is as small as possible.
    Otherwise they are drawn evenly from all directions."""
    max_rate: float = 0.12
    """Share of the rows in which the most frequent feature fires."""
    min_rate: float = 0.0035
    """Share of the rows in which the rarest feature fires. It is less for a feature whose
    parent is rarer."""
    zipf: float = 0.5
    """Exponent by which rates fall with the rank."""
    n_roots: int = 16
    """Number of features that have a tree of children below them. With 0 no feature depends on
    another."""
    branching: int = 4
    """Number of children of each parent."""
    depth: int = 2
    """Number of generations below a root."""
    exclusive: float = 1.0
    """Share of the parents whose children exclude each other."""
    scale_children: bool = True
    """Whether the activation of a child grows in proportion to that of its parent."""
    rank: int = 8
    """Number of hidden causes that features without a parent share, which is the rank of their
    correlations."""
    correlation: float = 0.1
    """Standard deviation of the weight that a feature gives to each hidden cause. With 0 there
    are no correlations."""
    first_mean: float = 5.0
    """Mean size of the most frequent feature where it fires."""
    last_mean: float = 4.0
    """Mean size of the rarest feature where it fires. The sizes of the features in between lie
    on a line."""
    std: float = 0.5
    """Standard deviation of a feature's size, as the average over all features before negative
    ones are made positive."""
    std_spread: float = 0.5
    """Standard deviation of these standard deviations. Negative ones are made positive."""
    bias: float = 0.5
    """Norm of the vector that is added to every row."""
    source: str = "own"
    """Generator that draws the rows: `own`, or `saelens` if SAELens is installed."""
    seed: int = 0
    """Seed of directions, sizes and rows."""

    def __post_init__(self) -> None:
        require_at_least(self, of="world.", d_in=1, n_features=1, n_roots=0, depth=1, rank=0)
        require_at_least(self, of="world.", branching=2)
        require(
            0 < self.min_rate <= self.max_rate < 1,
            f"world.min_rate={self.min_rate} and world.max_rate={self.max_rate} are "
            "impossible; give shares of the rows above 0 and below 1, the larger as max_rate",
        )
        require(self.zipf > 0, f"world.zipf={self.zipf} is impossible; give more than 0")
        require(
            0 <= self.exclusive <= 1,
            f"world.exclusive={self.exclusive} is impossible; give a share between 0 and 1",
        )
        require(
            self.n_roots <= self.n_features,
            f"world.n_roots={self.n_roots} is more than world.n_features={self.n_features}",
        )
        require(
            self.correlation >= 0 and self.rank * self.correlation**2 < 1,
            f"world.correlation={self.correlation} with world.rank={self.rank} leaves "
            "features no variation of their own; give 0 or more, with rank · correlation² "
            "below 1",
        )
        for name in ("first_mean", "last_mean"):
            value = getattr(self, name)
            require(value > 0, f"world.{name}={value} is impossible; give more than 0")
        for name in ("std", "std_spread", "bias"):
            value = getattr(self, name)
            require(value >= 0, f"world.{name}={value} is negative; give 0 or more")
        require(
            self.source in SOURCES,
            f"world.source={self.source} is unknown; choose one of {', '.join(SOURCES)}",
        )
