"""Edits of activations at a hook, as pure functions."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def add_vectors(vectors: Float[Tensor, "batch d_in"]) -> Callable[[Tensor], Tensor]:
    """An edit that adds its own vector to each row, at every position but the first.

    The first position holds the token that begins a text: no feature is trained on it, and
    models use it as a sink for attention. A row whose vector is zero is returned as it came,
    to the bit.

    While a model writes with a key-value cache, it sees the prompt at once and then one
    position at a time; a lone position is therefore never the first one. Prompts must have
    two tokens at least.
    """
    steered = (vectors != 0).any(dim=1)[:, None, None]

    def edit(x: Tensor) -> Tensor:
        first = 1 if x.shape[1] > 1 else 0
        moved = x.clone()
        moved[:, first:] += vectors[:, None].to(x)
        return torch.where(steered, moved, x)

    return edit


def random_direction(like: Float[Tensor, " d_in"], seed: int) -> Float[Tensor, " d_in"]:
    """A direction drawn evenly from all, with the norm of `like`."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(like.shape, generator=generator).to(like)
    scaled: Tensor = drawn * (torch.linalg.vector_norm(like) / torch.linalg.vector_norm(drawn))
    return scaled
