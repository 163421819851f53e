"""Running a model on a few tokens, to see what it does instead of guessing it from names."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.models.calls import uncompiled, without_cache


def probe_tokens(module: Any, n: int) -> Int[Tensor, "sequence position"]:
    """Return one sequence of `n` ids of text: descending, as no position ids are.

    Ids that the configuration gives a meaning, such as padding or an image, are left out.
    """
    config = getattr(module, "config", None)
    taken = set() if config is None else set(_named_ids(config.to_dict()))
    rows = module.get_input_embeddings().weight.shape[0]
    free = [i for i in range(rows) if i not in taken] or [0]
    chosen = [free[(n - 1 - i) * (len(free) - 1) // n] for i in range(n)]
    return torch.tensor([chosen])


def _named_ids(settings: Mapping[str, Any]) -> Iterator[int]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _named_ids(value)
        elif str(key).endswith(("token_id", "token_index")):
            yield from (i for i in _listed(value) if isinstance(i, int))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


class Call(NamedTuple):
    """One call of a module during a forward pass."""

    name: str
    module: nn.Module
    given: Tensor | None
    """The first tensor of numbers that it was given, in the order of its arguments."""
    returned: Tensor | None
    """What it returned, or the first tensor of that."""


def calls_of(module: nn.Module, tokens: Int[Tensor, "sequence position"]) -> list[Call]:
    """Return the calls of a forward pass over `tokens`, in the order in which they ended."""
    calls: list[Call] = []
    with ExitStack() as hooks, torch.inference_mode():
        for name, part in module.named_modules():

            def note(
                called: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name
            ) -> None:
                given = _first_tensor([*args, *kwargs.values()])
                calls.append(Call(name, called, given, _first_tensor(_listed(output))))

            handle = part.register_forward_hook(note, with_kwargs=True)
            hooks.callback(handle.remove)
        hooks.enter_context(uncompiled())
        module(tokens, **without_cache(module))
    return calls


def _first_tensor(values: Any) -> Float[Tensor, "..."] | None:
    for value in values:
        found = value[0] if isinstance(value, tuple) and value else value
        if isinstance(found, Tensor) and found.is_floating_point():
            return found
    return None


@contextmanager
def given_instead(
    place: nn.Module, tensor: Float[Tensor, "sequence position d"]
) -> Iterator[None]:
    """Inside this context the module is given `tensor` in place of its first argument."""

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (tensor, *args[1:]), kwargs
        first = next(iter(kwargs))
        return args, {**kwargs, first: tensor}

    handle = place.register_forward_pre_hook(before, with_kwargs=True)
    try:
        with uncompiled():
            yield
    finally:
        handle.remove()
