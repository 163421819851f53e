"""From a direction in the residual stream to the logits that it pushes up and down."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.base import require
from sae.core.cpu_kernels import use_threads
from sae.core.panel_kernels import extremes
from sae.models.site import Site
from sae.models.tail import tail_of


def unembedding(module: nn.Module, site: Site | None = None) -> Float[Tensor, "d_model vocab"]:
    """(d_model, vocabulary): the output embedding behind the final norm's gain, as measured.

    The norm's division by the stream's spread is left out: it scales all logits of a position
    alike. LayerNorm's subtraction of the mean is in it.

    Args:
        module: a model with weights.
        site: where directions are written; what the blocks give out if it is left out. In a
            model whose blocks norm the stream at their end, the last such norm stands before
            the head for what is written inside a block.

    Raises:
        UserError: if the site is not in the stream of the model, or its logits are not its
            stream, normed and projected.
    """
    tail = tail_of(module)
    at_block = site is None or site.module in tail.blocks
    require(
        site is None or at_block or site.in_stream,
        f"{site.hook_name if site else site} does not write into the residual stream",
    )
    matrix: Tensor = tail.head.weight.detach().float().t()
    for projection in tail.projections:
        matrix = projection.weight.detach().float().t() @ matrix
    if tail.norm is not None and not (tail.norm_in_block and at_block):
        matrix = tail.norm.gain.to(matrix)[:, None] * matrix
        if tail.norm.centred:
            # It takes the mean off the stream, so a constant direction moves no logit.
            matrix = matrix - matrix.mean(0)
    return matrix if tail.scale == 1 else tail.scale * matrix


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
