"""Running many changed copies of one text, what comes before the change computed once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sae.models.calls import hooked, uncompiled, without_cache
from sae.models.site import Site


@contextmanager
def replayed(module: nn.Module, site: Site, tokens: Int[Tensor, "1 position"]) -> Iterator[Any]:
    """Inside this context, blocks that end before `site` is reached return what they returned.

    The model is run once on `tokens`; forward passes inside, without gradients, are to be of
    any number of copies of them, changed at `site` or later. Of 30 blocks, those up to the
    tenth are then computed once and not once a copy. What cannot be taken over (a block that is
    called twice, or returns something else than activations of whole sequences) is computed as
    always, so results are those of the whole model, up to the rounding of larger products.

    Yields:
        What the model returned for `tokens`, nothing changed.
    """
    with ExitStack() as undo:
        undo.enter_context(uncompiled())
        before, plain = _ended_before(module, site, tokens)
        for part, output in before:
            undo.enter_context(_returning(part, output))
        yield plain


def _ended_before(
    module: nn.Module, site: Site, tokens: Int[Tensor, "1 position"]
) -> tuple[list[tuple[nn.Module, Any]], Any]:
    """Return the blocks whose only call ends before the site with what they returned.

    The second is what the model did.
    """
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    blocks = {block for listed in lists for block in listed}
    found: dict[nn.Module, Any] = {}
    called: list[nn.Module] = []
    reached: list[bool] = []

    def note(block: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        called.append(block)
        if not reached and _rows(args, kwargs):
            found[block] = output

    with ExitStack() as hooks, torch.inference_mode():
        for block in blocks:
            handle = block.register_forward_hook(note, with_kwargs=True)
            hooks.callback(handle.remove)
        # After the others, so that the block whose output this is has ended.
        hooks.enter_context(hooked(module, site, lambda _: reached.append(True)))
        plain = module(tokens, **without_cache(module))
    taken_over = [
        (block, output)
        for block, output in found.items()
        if called.count(block) == 1 and _of_sequences(output, tokens.shape[1])
    ]
    return taken_over, plain


def _of_sequences(output: Any, n_positions: int) -> bool:
    """Whether an output is activations of one sequence, alone or before nothing else."""
    first, *others = output if isinstance(output, (tuple, list)) else [output]
    is_whole = isinstance(first, Tensor) and first.dim() == 3
    return is_whole and first.shape[:2] == (1, n_positions) and others == [None] * len(others)


@contextmanager
def _returning(part: nn.Module, output: Any) -> Iterator[None]:
    """Let a module return an output, as often as there are sequences in what it is given."""
    before: Callable[..., Any] | None = vars(part).get("forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        return _repeated(output, len(_rows(args, kwargs)[0]))

    part.forward = forward
    try:
        yield
    finally:
        if before is None:
            del part.forward
        else:
            part.forward = before


def _rows(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the activations of sequences that a module is given."""
    given = (*args, *kwargs.values())
    return [x for x in given if isinstance(x, Tensor) and x.dim() == 3]


def _repeated(output: Any, n: int) -> Any:
    if isinstance(output, Tensor):
        return output.repeat(n, 1, 1)
    first, *others = output
    whole: Sequence[Any] = (first.repeat(n, 1, 1), *others)
    return list(whole) if isinstance(output, list) else whole
