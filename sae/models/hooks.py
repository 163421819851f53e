"""Places inside a model, by TransformerLens name or module path: find and read them.

A hook is the input or the output of one Hugging Face module, so nothing is reimplemented
and weights are never folded or centred: what is read is what the model computes.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.base import UserError, nearest, require
from sae.models.families import block_list, block_places
from sae.models.site import Site, named_in_stream


def list_sites(module: nn.Module) -> list[Site]:
    """Return every site of a model that has a TransformerLens name, block by block.

    Their widths are not measured; `measured` does that.
    """
    modules = dict(module.named_modules())
    blocks = block_list(module, modules)
    if blocks is None:
        return []
    found = []
    for i, _ in modules[blocks].named_children():
        block = f"{blocks}.{i}"
        for name, (inside, side) in block_places(block, modules).items():
            path = f"{block}.{inside}".rstrip(".")
            if path in modules:
                hook_name = f"blocks.{i}.{name}"
                in_stream = named_in_stream(hook_name)
                found.append(Site(hook_name, path, side, in_stream=in_stream))
    return found


def find_site(module: nn.Module, hook_name: str) -> Site:
    """Return the site of that TransformerLens name, or the output of the module at that path.

    A path whose output has a TransformerLens name goes by that name, any other by itself. The
    width is not measured; `measured` does that.

    Raises:
        UserError: if the model has no such place; names what is nearest.
    """
    listed = list_sites(module)
    for point in listed:
        by_path = point.side == "output" and point.module == hook_name
        if by_path or point.hook_name == hook_name:
            return point
    modules = [name for name, _ in module.named_modules() if name]
    if hook_name in modules:
        return Site(hook_name, hook_name, "output")
    names = [point.hook_name for point in listed]
    layers = {int(name.split(".")[1]) for name in names}
    asked = re.match(r"(?:\w+\.)*(?:blocks|layers?|h)\.(\d+)", hook_name)
    if layers and asked and int(asked.group(1)) not in layers:
        raise UserError(
            f"hook_name={hook_name}: layer {asked.group(1)} is out of range, this model has "
            f"layers 0 to {max(layers)}"
        )
    raise UserError(
        f"hook_name={hook_name} is no place in this model"
        f"{nearest(hook_name, [*names, *modules])}"
    )


def locate(module: nn.Module, place: Site | str) -> Site:
    """Return the site of a place: itself, or the one of that name where only a name is known.

    Raises:
        UserError: if the model has no such place.
    """
    if isinstance(place, str):
        return find_site(module, place)
    modules = [name for name, _ in module.named_modules()]
    require(
        place.module in modules,
        f"{place.hook_name} was read at {place.module}, which this model has not got"
        f"{nearest(place.module, modules)}; give the model that it was read in",
    )
    return place


class _Stop(Exception):
    """Ends a forward pass once everything asked for has been read."""


def _tensor(value: Any) -> Tensor:
    """Blocks return a tensor or a tuple that starts with one, by family and version."""
    found: Tensor = value[0] if isinstance(value, tuple) else value
    return found


def _replaced(value: Any, tensor: Tensor) -> Any:
    return (tensor, *value[1:]) if isinstance(value, tuple) else tensor


See = Callable[
    [Float[Tensor, "sequence position d"]], Float[Tensor, "sequence position d"] | None
]
"""Takes activations, and returns what is to be in their place, or None."""


@contextmanager
def hooked(module: nn.Module, point: Site, see: See, *, first: bool = False) -> Iterator[None]:
    """Inside this context `see` is called with the activations at `point` in every forward.

    A tensor that it returns takes their place, but a block may have put a copy of them aside:
    to change what a model computes use `sae.edits.edited`. A family that hands a block its
    input by keyword is served as well.

    Args:
        first: whether `see` is called before the hooks that are there already, not after them.
    """
    place = module.get_submodule(point.module)

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        new = see(_tensor(output))
        return None if new is None else _replaced(output, new)

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            new = see(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        new = see(kwargs["hidden_states"])
        return None if new is None else (args, {**kwargs, "hidden_states": new})

    if point.side == "output":
        handle = place.register_forward_hook(after, prepend=first)
    else:
        handle = place.register_forward_pre_hook(before, with_kwargs=True, prepend=first)
    try:
        yield
    finally:
        handle.remove()


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
        f"hook_name={hook_name} does not give one vector a token; choose a place inside a "
        "block, such as its output"
    )


def read_activations(
    module: nn.Module,
    points: Sequence[Site],
    tokens: Int[Tensor, "sequence position"],
    attention_mask: Int[Tensor, "sequence position"] | None = None,
) -> dict[str, Tensor]:
    """Activations at several hooks in one forward, stopped after the last one needed.

    Args:
        tokens: ids, on the model's device.
        attention_mask: 0 where the model is not to look; it looks everywhere if left out.

    Returns:
        For each hook name a tensor (batch, position, width), bit-equal to what a plain hook
        on an uninterrupted forward sees.

    Raises:
        UserError: if a module path is never called, or gives something else.
    """
    seen: dict[str, Tensor] = {}
    wanted = {point.hook_name for point in points}
    mask = {} if attention_mask is None else {"attention_mask": attention_mask}

    def keep(name: str) -> Callable[[Tensor], None]:
        def see(x: object) -> None:
            seen[name] = one_vector_a_token(name, x, tokens.shape)
            if len(seen) == len(wanted):
                raise _Stop

        return see

    with ExitStack() as hooks, suppress(_Stop), torch.inference_mode():
        for point in points:
            hooks.enter_context(hooked(module, point, keep(point.hook_name)))
        module(tokens, use_cache=False, **mask)
    unseen = [point.hook_name for point in points if point.hook_name not in seen]
    if unseen:
        raise UserError(
            f"hook_name={unseen[0]} is a part that the model does not call; choose one that "
            "computes something, such as a block"
        )
    return seen


def measured(module: nn.Module, sites: Sequence[Site]) -> list[Site]:
    """Return the sites with their widths, from a forward pass over two tokens.

    Not every model without weights can run on the meta device: there, sites that the pass does
    not reach keep a width of 0.

    Raises:
        UserError: if a model with weights never calls a site's module, or it gives something
            else than one vector a token.
    """
    device = next(iter(module.parameters())).device
    tokens = torch.zeros((1, 2), dtype=torch.int64, device=device)
    if device.type == "meta":
        widths = _widths_without_weights(module, sites, tokens)
    else:
        seen = read_activations(module, sites, tokens)
        widths = {name: x.shape[-1] for name, x in seen.items()}
    return [replace(site, width=widths.get(site.hook_name, 0)) for site in sites]


def _widths_without_weights(
    module: nn.Module, sites: Sequence[Site], tokens: Tensor
) -> dict[str, int]:
    widths: dict[str, int] = {}

    def note(name: str, x: Tensor) -> None:
        widths[name] = x.shape[-1]

    # To make a mask, a model would look at values; a mask of full rank is taken as it is.
    mask = torch.ones((1, 1, 2, 2), dtype=torch.bool, device=tokens.device)
    with ExitStack() as hooks, torch.inference_mode():
        for site in sites:
            hooks.enter_context(hooked(module, site, partial(note, site.hook_name)))
        # A model's own code may fail in any way on tensors that hold nothing.
        with suppress(Exception):
            module(tokens, attention_mask=mask, use_cache=False)
    return widths
