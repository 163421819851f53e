"""Worlds whose features are known: directions, how they fire, and rows made of them."""

from sae.synthetic.config import WorldConfig
from sae.synthetic.own import OwnWorld, open_world
from sae.synthetic.world import BLOCK_ROWS, HELD_OUT, TRAINING, Block, Codes, World

__all__ = [
    "BLOCK_ROWS",
    "HELD_OUT",
    "TRAINING",
    "Block",
    "Codes",
    "OwnWorld",
    "World",
    "WorldConfig",
    "open_world",
]
