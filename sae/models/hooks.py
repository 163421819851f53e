"""Places inside a model, by TransformerLens name or module path: find, read, edit.

A hook is the input or the output of one Hugging Face module, so nothing is reimplemented
and weights are never folded or centred: what is read is what the model computes.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sae.base.errors import UserError, nearest
from sae.models.families import block_list, block_places, copied_at_mid
from sae.models.site import Site, named_in_stream

Edit = Callable[[Tensor], Tensor]
"""Takes and returns activations of shape (batch, position, width)."""


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
    return find_site(module, place) if isinstance(place, str) else place


class _Stop(Exception):
    """Ends a forward pass once everything asked for has been read."""


def _tensor(value: Any) -> Tensor:
    """Blocks return a tensor or a tuple that starts with one, by family and version."""
    found: Tensor = value[0] if isinstance(value, tuple) else value
    return found


def _replaced(value: Any, tensor: Tensor) -> Any:
    return (tensor, *value[1:]) if isinstance(value, tuple) else tensor


def _register(module: nn.Module, point: Site, see: Callable[[Tensor], Tensor | None]) -> Any:
    """Call `see` with the activations at `point`; a tensor that it returns takes their place.

    A family that hands a block its input by keyword is served as well.
    """
    place = module.get_submodule(point.module)
    if point.side == "output":

        def after(_: nn.Module, __: Any, output: Any) -> Any:
            new = see(_tensor(output))
            return None if new is None else _replaced(output, new)

        return place.register_forward_hook(after)

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            new = see(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        new = see(kwargs["hidden_states"])
        return None if new is None else (args, {**kwargs, "hidden_states": new})

    return place.register_forward_pre_hook(before, with_kwargs=True)


def read_activations(
    module: nn.Module,
    points: Sequence[Site],
    tokens: Tensor,
    attention_mask: Tensor | None = None,
) -> dict[str, Tensor]:
    """Activations at several hooks in one forward, stopped after the last one needed.

    Args:
        tokens: ids, (batch, position), on the model's device.
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
        def see(x: Any) -> None:
            if not isinstance(x, Tensor) or x.dim() != 3 or x.shape[:2] != tokens.shape:
                raise UserError(
                    f"hook_name={name} does not give one vector a token; choose a place "
                    "inside a block, such as its output"
                )
            seen[name] = x
            if len(seen) == len(wanted):
                raise _Stop

        return see

    handles = [_register(module, point, keep(point.hook_name)) for point in points]
    try:
        with torch.inference_mode():
            module(tokens, use_cache=False, **mask)
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
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
    handles = [_register(module, site, partial(note, site.hook_name)) for site in sites]
    try:
        # A model's own code may fail in any way on tensors that hold nothing.
        with torch.inference_mode(), suppress(Exception):
            module(tokens, attention_mask=mask, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return widths


@contextmanager
def edited(module: nn.Module, point: Site, edit: Edit) -> Iterator[None]:
    """Inside this context every forward of `module` has `edit` applied at `point`."""
    if copied_at_mid(point.hook_name, point.module):
        handles = _register_mid(module, point, edit)
    else:
        handles = [_register(module, point, edit)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def edited_from(
    module: nn.Module,
    source: Site,
    point: Site,
    edit: Callable[[Tensor, Tensor], Tensor],
) -> Iterator[None]:
    """Like `edited`, by an `edit` that also gets what stands at `source` in the same forward.

    Args:
        edit: gives new activations at `point` from those at `source` and the old ones.
            `source` may be `point`, and must not come after it in the model.
    """
    seen: list[Tensor] = []

    def keep(x: Tensor) -> None:
        seen[:] = [x]

    def edit_at_point(x: Tensor) -> Tensor:
        if not seen:
            raise UserError(
                f"hook_name_out={point.hook_name} comes before hook_name={source.hook_name} "
                "in the model; a transcoder goes from a place to the same or a later one"
            )
        # Taken away, so that no forward is ever edited by what another one held.
        return edit(seen.pop(), x)

    # The reader first: hooks of one module are called in the order that they came in.
    handle = _register(module, source, keep)
    try:
        with edited(module, point, edit_at_point):
            yield
    finally:
        handle.remove()


def _register_mid(module: nn.Module, point: Site, edit: Edit) -> list[Any]:
    """Edit the middle of a block's residual stream.

    The norm before the MLP sees it, but the block has put a copy aside to add the MLP's output
    to; the change is added there as well, when the block returns.
    """
    changes: list[Tensor] = []

    def before_norm(x: Tensor) -> Tensor:
        new = edit(x)
        changes.append(new - x)
        return new

    block = Site(point.hook_name, point.module.rpartition(".")[0], "output")
    return [
        _register(module, point, before_norm),
        _register(module, block, lambda output: output + changes.pop()),
    ]
