"""How many tokens a model can read at once."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from sae.models.calls import without_cache
from sae.models.traced import probe_tokens

# What configurations call it; ALiBi, RWKV and Mamba have no end, and their configurations no
# such number.
_NAMES = (
    "max_position_embeddings",
    "max_seq_len",
    "max_sequence_length",
    "max_seq_length",
    "n_positions",
    "n_ctx",
    "seq_length",
)


def usable_positions(module: nn.Module) -> int | None:
    """Return how many tokens a model, with or without weights, can read at once; None if any.

    That is what its configuration says, or fewer where a learned table of positions ends
    earlier: RoBERTa's begins behind the id of its padding, so two of its rows are never used.
    """
    config: Any = module.config
    counts = [*_stated(config.get_text_config()), *_rows_left(module)]
    return min(counts, default=None)


def _stated(settings: Any) -> Iterator[int]:
    # Numbers that a config.json has beside what its class declares mean nothing to the model.
    declared = inspect.signature(type(settings)).parameters
    mapped = getattr(type(settings), "attribute_map", {})
    for name in _NAMES:
        if name in declared or mapped.get(name) in _NAMES:
            found = getattr(settings, name, None)
            if type(found) is int and found > 0:
                yield found


def _rows_left(module: nn.Module) -> Iterator[int]:
    """Rows of each table from that on which the first token of a text looks up."""
    tokens = probe_tokens(module, 4)
    device = next(module.parameters()).device
    if device.type != "meta":
        tokens = tokens.to(device)
    lookups = _Lookups()
    # A model's own code may fail in any way on tensors that hold nothing, and on text alone;
    # by then it has looked up its embeddings.
    with suppress(Exception), torch.inference_mode(), lookups:
        module(tokens, **without_cache(module))
    for ids, table in lookups.seen:
        if ids.is_meta or ids.dim() == 0 or ids.shape[-1] < 4:
            continue
        # Behind the tokens there may be padding, up to a whole window.
        first, asked = int(ids.flatten()[0]), ids[..., :4].cpu()
        if bool((asked == first + torch.arange(4)).all()):
            yield len(table) - first


class _Lookups(TorchFunctionMode):
    """Notes which ids are looked up in which table."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Note a lookup; without weights, give back a tensor of its shape."""
        if func is functional.embedding:
            ids, table = args[:2]
            self.seen.append((ids, table))
            if table.is_meta:
                return table.new_empty((*ids.shape, table.shape[1]))
        if func is Tensor.to and args[0].is_meta:
            # It would be copied where the ids are, but holds nothing.
            return torch.zeros_like(args[0], device="cpu")
        return func(*args, **(kwargs or {}))
