"""Places inside a model, by TransformerLens name or module path: find, read, edit.

A hook is the input or the output of one Hugging Face module, so nothing is reimplemented
and weights are never folded or centred: what is read is what the model computes.
"""

import re
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sae.base.errors import UserError, nearest

Edit = Callable[[Tensor], Tensor]
"""Takes and returns activations of shape (batch, position, width)."""


@dataclass(frozen=True, slots=True)
class HookPoint:
    """One place: `hook_name` as people write it, and the module whose side it is."""

    hook_name: str
    module: str
    side: str
    """`"output"` or `"input"` of the module."""


# Where each family keeps its blocks, and the hooks inside block {i}: (module path, side).
# TransformerLens's names on the left; what stands in the middle of the residual stream is
# the input of the norm before the MLP, where a family has one.
_PRE_NORM = {
    "hook_resid_pre": ("", "input"),
    "hook_resid_post": ("", "output"),
    "hook_attn_out": ("self_attn", "output"),
    "attn.hook_z": ("self_attn.o_proj", "input"),
    "hook_mlp_out": ("mlp", "output"),
    "mlp.hook_post": ("mlp.down_proj", "input"),
    "hook_resid_mid": ("post_attention_layernorm", "input"),
}
# Families that norm what attention and MLP add (Gemma 2, OLMo 2): what is added is the
# norm's output, and `post_attention_layernorm` is that norm, not the one before the MLP.
_POST_NORM = {
    "hook_attn_out": ("post_attention_layernorm", "output"),
    "hook_mlp_out": ("post_feedforward_layernorm", "output"),
}
_GPT2 = {
    "hook_resid_pre": ("", "input"),
    "hook_resid_post": ("", "output"),
    "hook_attn_out": ("attn", "output"),
    "attn.hook_z": ("attn.c_proj", "input"),
    "hook_mlp_out": ("mlp", "output"),
    "mlp.hook_post": ("mlp.c_proj", "input"),
    "hook_resid_mid": ("ln_2", "input"),
}
_GPT_NEOX = {
    "hook_resid_pre": ("", "input"),
    "hook_resid_post": ("", "output"),
    "hook_attn_out": ("attention", "output"),
    "attn.hook_z": ("attention.dense", "input"),
    "hook_mlp_out": ("mlp", "output"),
    "mlp.hook_post": ("mlp.dense_4h_to_h", "input"),
}
_FAMILIES = {
    "model.layers": _PRE_NORM,
    "transformer.h": _GPT2,
    "gpt_neox.layers": _GPT_NEOX,
}


def _table(
    table: dict[str, tuple[str, str]], block: str, modules: Container[str]
) -> dict[str, tuple[str, str]]:
    """The family's hooks, corrected for a block that norms what it adds to the stream."""
    if f"{block}.post_feedforward_layernorm" not in modules:
        return table
    pre_norm = "pre_feedforward_layernorm"
    mid = pre_norm if f"{block}.{pre_norm}" in modules else "mlp"
    return {**table, **_POST_NORM, "hook_resid_mid": (mid, "input")}


def list_hooks(module: nn.Module) -> list[HookPoint]:
    """Every hook of `module` that has a TransformerLens name, block by block."""
    found = []
    modules = dict(module.named_modules())
    for blocks, table in _FAMILIES.items():
        layers = modules.get(blocks)
        if not isinstance(layers, nn.ModuleList):
            continue
        for i in range(len(layers)):
            block = f"{blocks}.{i}"
            for name, (inside, side) in _table(table, block, modules).items():
                path = f"{block}.{inside}".rstrip(".")
                if path in modules:
                    found.append(HookPoint(f"blocks.{i}.{name}", path, side))
    return found


def find_hook(module: nn.Module, hook_name: str) -> HookPoint:
    """The hook called `hook_name`: a TransformerLens name, or a module path (its output).

    Raises:
        UserError: if the model has no such place; names what is nearest.
    """
    known = {point.hook_name: point for point in list_hooks(module)}
    if hook_name in known:
        return known[hook_name]
    if hook_name and hook_name in dict(module.named_modules()):
        return HookPoint(hook_name, hook_name, "output")
    layers = {int(name.split(".")[1]) for name in known}
    asked = re.match(r"(?:blocks|layers|model\.layers|transformer\.h)\.(\d+)", hook_name)
    if layers and asked and int(asked.group(1)) not in layers:
        raise UserError(
            f"hook_name={hook_name}: layer {asked.group(1)} is out of range, this model has "
            f"layers 0 to {max(layers)}"
        )
    candidates = [*known, *(name for name, _ in module.named_modules())]
    raise UserError(
        f"hook_name={hook_name} is no place in this model{nearest(hook_name, candidates)}"
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
    module: nn.Module, points: Sequence[HookPoint], tokens: Tensor
) -> dict[str, Tensor]:
    """Activations at several hooks in one forward, stopped after the last one needed.

    Args:
        tokens: ids, (batch, position), on the model's device.

    Returns:
        For each hook name a tensor (batch, position, width), bit-equal to what a plain hook
        on an uninterrupted forward sees.

    Raises:
        UserError: if a module path is never called, or gives something else.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], None]:
        def see(x: Any) -> None:
            if not isinstance(x, Tensor) or x.dim() != 3 or x.shape[:2] != tokens.shape:
                raise UserError(
                    f"hook_name={name} does not give one vector a token; choose a place "
                    "inside a block, such as its output"
                )
            seen[name] = x
            if len(seen) == len(points):
                raise _Stop

        return see

    handles = [_register(module, point, keep(point.hook_name)) for point in points]
    try:
        with torch.inference_mode():
            module(tokens, use_cache=False)
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


@contextmanager
def edited(module: nn.Module, point: HookPoint, edit: Edit) -> Iterator[None]:
    """Inside this context every forward of `module` has `edit` applied at `point`."""
    if point.hook_name.endswith("hook_resid_mid"):
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
