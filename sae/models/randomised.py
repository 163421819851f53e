"""A model with the shape of a trained one and nothing that it learned: a control."""

import torch
from torch import nn

_SEED = 0


def randomise(module: nn.Module) -> None:
    """Draw every matrix of a model anew, with the mean and the spread that it has.

    So activations are about as large as in the trained model, and whatever is found in them
    was not learned (Heap et al., arXiv 2501.17727, who call this re-randomised). Vectors, the
    gains of norms and biases, stay. The same model always gets the same numbers.
    """
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for _, weight in sorted(module.named_parameters()):
            if weight.dim() < 2:
                continue
            drawn = torch.randn(weight.shape, generator=generator)
            values = weight.float().cpu()
            drawn.mul_(values.std()).add_(values.mean())
            weight.copy_(drawn)
