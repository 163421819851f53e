"""From a direction in the residual stream to the logits that it pushes up and down."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.core.cpu_kernels import use_threads
from sae.core.panel_kernels import extremes

_FINAL_NORMS = (
    "model.norm",
    "model.language_model.norm",
    "transformer.ln_f",
    "gpt_neox.final_layer_norm",
    "model.final_layernorm",
)


def unembedding(module: nn.Module) -> Float[Tensor, "d_model vocabulary"] | None:
    """(d_model, vocabulary): the output embedding behind the final norm's gain.

    The norm's division by the stream's spread is left out: it scales all logits of a position
    alike. LayerNorm's subtraction of the mean is in it. None for a model without an output
    embedding.
    """
    head = module.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        return None
    matrix: Tensor = head.weight.detach().float().t()
    modules = dict(module.named_modules())
    for name in _FINAL_NORMS:
        if name in modules and isinstance(modules[name].weight, Tensor):
            gain = modules[name].weight.detach().float()
            # Gemma's norms store their gain as a difference from one.
            if "gemma" in type(modules[name]).__name__.lower():
                gain = 1 + gain
            matrix = gain[:, None] * matrix
            if isinstance(modules[name], nn.LayerNorm):
                # It takes the mean off the stream, so a constant direction moves no logit.
                matrix = matrix - matrix.mean(0)
    return matrix


class ExtremeLogits(NamedTuple):
    """Which tokens directions promote and suppress the most, the strongest first."""

    top_values: Float[Tensor, "direction k"]
    top_ids: Int[Tensor, "direction k"]
    bottom_values: Float[Tensor, "direction k"]
    bottom_ids: Int[Tensor, "direction k"]
    sharpness: Float[Tensor, " direction"]
    """How many standard deviations the mean of the `k` highest stands above that of all."""


@torch.no_grad()
def extreme_logits(
    directions: Float[Tensor, "direction d_model"],
    matrix: Float[Tensor, "d_model vocabulary"],
    k: int,
    block: int = 256,
) -> ExtremeLogits:
    """Return the `k` highest and lowest logits of each direction.

    Args:
        matrix: as `unembedding` gives it.
        k: at most the size of the vocabulary.
        block: directions whose logits are held at once.
    """
    k = min(k, matrix.shape[1])
    logits = matrix.new_empty(min(block, len(directions)), matrix.shape[1])
    parts = []
    for rows in torch.split(directions.to(matrix), block):
        out = logits[: len(rows)]
        parts.append(_extremes(torch.mm(rows, matrix, out=out), k))
    high, high_ids, low, low_ids = (torch.cat(p) for p in zip(*parts, strict=True))
    mean, spread = _logit_moments(directions.to(matrix), matrix)
    sharpness = (high.mean(1) - mean) / spread.clamp_min(1e-12)
    found = high, high_ids, low, low_ids, sharpness
    return ExtremeLogits(*(tensor.cpu() for tensor in found))


def _extremes(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if logits.is_cuda:
        best, worst = logits.topk(k, dim=1), logits.topk(k, dim=1, largest=False)
        return best.values, best.indices, worst.values, worst.indices
    high, low = logits.new_empty(2, len(logits), k)
    high_ids, low_ids = torch.zeros(2, len(logits), k, dtype=torch.int64)
    use_threads()
    extremes(*(t.numpy() for t in (logits, high, high_ids, low, low_ids)))
    return high, high_ids, low, low_ids


def _logit_moments(directions: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each direction's logits, without the logits.

    Of `d · u` over the columns u of the matrix: `d · ū` and `d C dᵀ`, with C their covariance.
    """
    mean = matrix.mean(1)
    centred = matrix - mean[:, None]
    covariance = (centred @ centred.t()).double() / max(1, matrix.shape[1] - 1)
    wide = directions.double()
    variance = ((wide @ covariance) * wide).sum(1)
    return directions @ mean, variance.clamp_min(0).sqrt().to(directions)
