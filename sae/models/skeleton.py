"""Weights made up for a model that has none, to run its code; they take no memory."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

_STEP, _TENSORS = 16, 64


def made_up(module: nn.Module) -> nn.Module:
    """Return a copy on the CPU of a model on the meta device, with made-up weights.

    They mean nothing, but a forward pass does with them what it does with others.
    """
    twin, numbers = copy.deepcopy(module).eval(), _Numbers()
    made: dict[Tensor, Tensor] = {}
    for part in twin.modules():
        stores: list[dict[str, Any]] = [part._parameters, part._buffers, vars(part)]
        for held in stores:
            for name, tensor in held.items():
                if isinstance(tensor, Tensor) and tensor.is_meta:
                    if tensor not in made:
                        made[tensor] = numbers.like(tensor)
                    new = made[tensor]
                    weight = isinstance(tensor, nn.Parameter)
                    held[name] = nn.Parameter(new, requires_grad=False) if weight else new
    return twin


class _Numbers:
    """Random numbers that large tensors share."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.shared: dict[tuple[int, ...], Tensor] = {}
        self.start = 0

    def like(self, tensor: Tensor) -> Tensor:
        """Return numbers of a tensor's shape."""
        shape = tuple(tensor.shape)
        if not tensor.is_floating_point():
            # Whole numbers are ids and positions, but one alone is a factor.
            one = tensor.dtype == torch.bool or not shape
            return torch.full((), int(one), dtype=tensor.dtype).expand(shape)
        if len(shape) < 2:
            return torch.rand(shape, generator=self.generator) + 0.5
        if len(shape) == 2:
            # W[i, j] is number i + j.
            return self._weights(shape, sum(shape)).as_strided(shape, (1, 1))
        # Of experts each matrix is whole, as fast kernels ask for, and begins a little later.
        n_matrices, matrix = math.prod(shape[:-2]), math.prod(shape[-2:])
        if shape not in self.shared:
            self.shared[shape] = self._weights(shape, matrix + _STEP * (n_matrices + _TENSORS))
        self.start = (self.start + 1) % _TENSORS
        steps = [_STEP * math.prod(shape[i + 1 : -2]) for i in range(len(shape) - 2)]
        return self.shared[shape].as_strided(shape, (*steps, shape[-1], 1), _STEP * self.start)

    def _weights(self, shape: tuple[int, ...], n: int) -> Tensor:
        """Return numbers as large as weights are when training begins."""
        scale: float = 4 / max(1, shape[-1]) ** 0.5
        return (torch.rand(n, generator=self.generator) - 0.5) * scale
