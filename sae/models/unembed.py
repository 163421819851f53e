"""From a direction in the residual stream to the logits that it pushes up and down."""

import torch
from torch import Tensor, nn

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


def extreme_logits(
    directions: Tensor, matrix: Tensor, k: int, block: int = 512
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The `k` highest and lowest logits of each direction (rows of `directions`).

    Returns:
        Values and token ids of the highest, of the lowest (each (direction, k)), and the
        sharpness (direction,): how many standard deviations the mean of the `k` highest
        stands above the mean over the vocabulary.
    """
    parts = []
    for rows in torch.split(directions, block):
        logits = rows.to(matrix) @ matrix
        high, low = logits.topk(k, dim=1), logits.topk(k, dim=1, largest=False)
        spread = logits.std(dim=1).clamp_min(1e-12)
        sharpness = (high.values.mean(1) - logits.mean(1)) / spread
        parts.append((high.values, high.indices, low.values, low.indices, sharpness))
    joined = [torch.cat(column).cpu() for column in zip(*parts, strict=True)]
    return joined[0], joined[1], joined[2], joined[3], joined[4]
