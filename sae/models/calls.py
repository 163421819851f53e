"""Looking at what a module is given or returns while a model runs, and changing it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from inspect import Parameter, signature
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae.base import UserError
from sae.models.site import Site

See = Callable[
    [Float[Tensor, "sequence position d"]], Float[Tensor, "sequence position d"] | None
]
"""Takes activations, and returns what is to be in their place, or None."""


def returned(output: Any) -> Any:
    """Return the activations in what a module returned: it, or the first part of it."""
    return output[0] if isinstance(output, (tuple, list)) and output else output


def given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the activations that a module is called with, or None if it is given no tensor."""
    if args:
        return args[0]
    return kwargs.get(_keyword(kwargs))


def _keyword(kwargs: dict[str, Any]) -> str:
    tensors = (name for name, value in kwargs.items() if isinstance(value, Tensor))
    return "hidden_states" if "hidden_states" in kwargs else next(tensors, "")


def _tokens(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Size:
    """Return how many sequences, and positions in them, a model is run on."""
    x = kwargs.get("input_ids", kwargs.get("inputs_embeds", args[0] if args else None))
    return x.shape[:2] if isinstance(x, Tensor) else torch.Size()


def _with_returned(output: Any, new: Tensor) -> Any:
    if isinstance(output, list):
        return [new, *output[1:]]
    return (new, *output[1:]) if isinstance(output, tuple) else new


def uncompiled() -> AbstractContextManager[None]:
    """Inside this context what `torch.compile` has made runs as it was written.

    It knows nothing of hooks that came after it, and would pass them by.
    """
    found: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return found


@contextmanager
def hooked(module: nn.Module, point: Site, see: See, *, first: bool = False) -> Iterator[None]:
    """Inside this context `see` is called with the activations at `point` in every forward.

    A tensor that it returns takes their place, but a block may have put a copy of them aside:
    to change what a model computes use `sae.edits.edited`. A family that hands a block its
    input by keyword is served as well. Of a module that is called several times in a forward
    pass, `see` gets the call that the site names.

    Args:
        first: whether `see` is called before the hooks that are there already, not after them.
    """
    place = module.get_submodule(point.module)
    calls, shape = 0, torch.Size()

    def begin(_: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal calls, shape
        calls, shape = 0, _tokens(args, kwargs)

    def is_meant() -> bool:
        nonlocal calls
        calls += 1
        return point.call in (None, calls - 1)

    def seen(x: Any) -> Tensor | None:
        if not is_meant():
            return None
        new = see(x.reshape(*shape, -1) if point.flat else x)
        return new.reshape(x.shape) if point.flat and new is not None else new

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        new = seen(returned(output))
        return None if new is None else _with_returned(output, new)

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        new = seen(given(args, kwargs))
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, kwargs | {_keyword(kwargs): new})

    if point.side == "output":
        handle = place.register_forward_hook(after, prepend=first)
    else:
        handle = place.register_forward_pre_hook(before, with_kwargs=True, prepend=first)
    start = module.register_forward_pre_hook(begin, prepend=True, with_kwargs=True)
    try:
        with uncompiled():
            yield
    finally:
        handle.remove()
        start.remove()


@contextmanager
def computing(part: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside this context a module computes `forward` of its own way and what it is given."""
    before: Any = vars(part).get("forward")
    part.forward = partial(forward, part.forward)
    try:
        yield
    finally:
        if before is None:
            del part.forward
        else:
            part.forward = before


def one_vector_a_token(
    hook_name: str, found: object, shape: torch.Size | None = None
) -> Float[Tensor, "sequence position d"]:
    """Return what was found at a site if it is activations of sequences, of `shape` if given.

    Raises:
        UserError: if not, as where each expert is given some of the tokens.
    """
    if isinstance(found, Tensor) and found.dim() == 3 and shape in (None, found.shape[:2]):
        return found
    raise UserError(
        f"hook_name={hook_name} does not have one vector for each token; choose a place "
        "inside a block, such as its output"
    )


def without_cache(module: nn.Module) -> dict[str, bool]:
    """Return the settings of a forward pass that keeps no keys and values, where any can be."""
    parameters = signature(module.forward).parameters.values()
    named = any(p.name == "use_cache" or p.kind == Parameter.VAR_KEYWORD for p in parameters)
    return {"use_cache": False} if named else {}
