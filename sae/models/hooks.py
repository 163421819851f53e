"""Places inside a model, by TransformerLens name or module path: find, read, edit.

A hook is the input or the output of one Hugging Face module, so nothing is reimplemented
and weights are never folded or centred: what is read is what the model computes.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sae.base.errors import UserError, nearest
from sae.models.families import block_list, block_places, copied_at_mid

Edit = Callable[[Tensor], Tensor]
"""Takes and returns activations of shape (batch, position, width)."""


@dataclass(frozen=True, slots=True)
class HookPoint:
    """One place: `hook_name`, TransformerLens's where it has one, and the module's side."""

    hook_name: str
    module: str
    side: str
    """`"output"` or `"input"` of the module."""


def list_hooks(module: nn.Module) -> list[HookPoint]:
    """Every hook of `module` that has a TransformerLens name, block by block."""
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
                found.append(HookPoint(f"blocks.{i}.{name}", path, side))
    return found


def find_hook(module: nn.Module, hook_name: str) -> HookPoint:
    """The hook called `hook_name`: a TransformerLens name, or a module path (its output).

    A path whose output has a TransformerLens name goes by that name, any other by itself.

    Raises:
        UserError: if the model has no such place; names what is nearest.
    """
    listed = list_hooks(module)
    for point in listed:
        by_path = point.side == "output" and point.module == hook_name
        if by_path or point.hook_name == hook_name:
            return point
    modules = [name for name, _ in module.named_modules() if name]
    if hook_name in modules:
        return HookPoint(hook_name, hook_name, "output")
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


class _Stop(Exception):
    """Ends a forward pass once everything asked for has been read."""


def _tensor(value: Any) -> Tensor:
    """Blocks return a tensor or a tuple that starts with one, by family and version."""
    found: Tensor = value[0] if isinstance(value, tuple) else value
    return found


def _replaced(value: Any, tensor: Tensor) -> Any:
    return (tensor, *value[1:]) if isinstance(value, tuple) else tensor


def _register(
    module: nn.Module, point: HookPoint, see: Callable[[Tensor], Tensor | None]
) -> Any:
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
    points: Sequence[HookPoint],
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


def hook_widths(module: nn.Module) -> dict[str, int]:
    """Widths at the hooks of a model without weights, by a forward of two tokens.

    Not every model can run on the meta device; hooks that it does not reach are left out.
    """
    widths: dict[str, int] = {}

    def note(name: str, x: Tensor) -> None:
        widths[name] = x.shape[-1]

    # A mask of full rank is taken as it is; to make one, values would be looked at.
    mask = torch.ones((1, 1, 2, 2), dtype=torch.bool, device="meta")
    tokens = torch.zeros((1, 2), dtype=torch.int64, device="meta")
    points = list_hooks(module)
    handles = [_register(module, point, partial(note, point.hook_name)) for point in points]
    try:
        # A model's own code may fail in any way on tensors that hold nothing.
        with torch.inference_mode(), suppress(Exception):
            module(tokens, attention_mask=mask, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return widths


@contextmanager
def edited(module: nn.Module, point: HookPoint, edit: Edit) -> Iterator[None]:
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
    source: HookPoint,
    point: HookPoint,
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


def _register_mid(module: nn.Module, point: HookPoint, edit: Edit) -> list[Any]:
    """Edit the middle of a block's residual stream.

    The norm before the MLP sees it, but the block has put a copy aside to add the MLP's output
    to; the change is added there as well, when the block returns.
    """
    changes: list[Tensor] = []

    def before_norm(x: Tensor) -> Tensor:
        new = edit(x)
        changes.append(new - x)
        return new

    block = HookPoint(point.hook_name, point.module.rpartition(".")[0], "output")
    return [
        _register(module, point, before_norm),
        _register(module, block, lambda output: output + changes.pop()),
    ]


_INTO_THE_STREAM = (
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_normalized_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
)


def writes_to_stream(module: nn.Module, point: HookPoint) -> bool:
    """Whether what stands at `point` is added to, or is, the residual stream.

    Width alone does not tell: the heads' outputs are often as wide as the stream.
    """
    names = [
        known.hook_name
        for known in list_hooks(module)
        if (known.module, known.side) == (point.module, point.side)
    ]
    return any(name.endswith(_INTO_THE_STREAM) for name in names)
