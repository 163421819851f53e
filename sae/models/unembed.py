"""From a direction in the residual stream to the logits that it pushes up and down."""

import torch
from torch import Tensor, nn

from sae.core.panel_kernels import extremes
from sae.core.threads import use_threads

_FINAL_NORMS = (
    "model.norm",
    "model.language_model.norm",
    "transformer.ln_f",
    "gpt_neox.final_layer_norm",
    "model.final_layernorm",
)


def unembedding(module: nn.Module) -> Tensor | None:
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


def token_strings(tokenizer: object, ids: Tensor) -> list[str]:
    """The text of single tokens; a token that is part of a character shows as �."""
    wanted = ids.reshape(-1).tolist()
    unique = sorted(set(wanted))
    texts: list[str] = tokenizer.batch_decode([[i] for i in unique])  # type: ignore[attr-defined]
    table = dict(zip(unique, texts, strict=True))
    return [table[i] for i in wanted]


@torch.no_grad()
def extreme_logits(
    directions: Tensor, matrix: Tensor, k: int, block: int = 256
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The `k` highest and lowest logits of each direction (rows of `directions`).

    Args:
        matrix: (d_model, vocabulary), as `unembedding` gives it.
        k: at most the size of the vocabulary.
        block: directions whose logits are held at once.

    Returns:
        Values and token ids of the highest, of the lowest (each (direction, k)), and the
        sharpness (direction,): how many standard deviations the mean of the `k` highest
        stands above the mean over the vocabulary.
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
    return high.cpu(), high_ids.cpu(), low.cpu(), low_ids.cpu(), sharpness.cpu()


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
