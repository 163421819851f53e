"""Places inside a model, by TransformerLens name or module path: find and read them.

A hook is the input or the output of one Hugging Face module, so nothing is reimplemented
and weights are never folded or centred: what is read is what the model computes. A name stands
for a place only if TransformerLens's identities hold there in the model itself (`identities`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sae.base import UserError, nearest, require
from sae.models.calls import hooked, one_vector_a_token, without_cache
from sae.models.identities import NAMES
from sae.models.probe import Probe, probe
from sae.models.site import Site


def list_sites(module: nn.Module) -> list[Site]:
    """Return every site of a model that has a TransformerLens name, block by block.

    Their widths are not measured; `measured` does that.
    """
    return probe(module).sites


def find_site(module: nn.Module, hook_name: str) -> Site:
    """Return the site of that TransformerLens name, or the place at that module's path.

    A path means what the module returns, and with `.input` behind it what it is given. Where
    a place has a TransformerLens name it goes by that, any other by its path. Of a module that
    is called several times in a forward pass, `path#3` is the fourth call. The width is not
    measured; `measured` does that.

    Raises:
        UserError: if the model has no such place, or several.
    """
    found = probe(module)
    modules = dict(module.named_modules(remove_duplicate=False))
    place, mark, call = hook_name.partition("#")
    path, _, side = place.rpartition(".")
    if place in modules or side not in ("input", "output") or path not in modules:
        path, side = place, "output"
    asked = path if side == "output" else place
    for point in found.sites:
        if hook_name == point.hook_name or (asked == point.path and not mark):
            return point
    if path and path in modules:
        site = Site(asked, path, "input" if side == "input" else "output")
        return _called(found, modules, site, call if mark else None)
    raise UserError(_no_place(module, found, hook_name, [*modules]))


def _called(
    found: Probe, modules: Mapping[str, nn.Module], site: Site, call: str | None
) -> Site:
    """Return a site, at one of the calls of its module if there are several."""
    path = site.hook_name
    calls = found.calls[_first_path(modules, site.module)]
    if call is None:
        require(calls < 2, f"hook_name={path} {_several(path, calls)}")
        return site
    if not call.isdecimal() or int(call) >= calls:
        there = f"{path}#0 to {path}#{calls - 1}" if calls > 1 else path
        raise UserError(f"hook_name={path}#{call} is not a call of that module; choose {there}")
    if calls < 2:
        return site
    return replace(site, hook_name=f"{path}#{int(call)}", call=int(call))


def _several(path: str, calls: int) -> str:
    return (
        f"is called {calls} times in a forward pass; say which call is meant, from {path}#0 to "
        f"{path}#{calls - 1} (in a shell: hook_name=\"'{path}#0'\")"
    )


def _first_path(modules: Mapping[str, nn.Module], path: str) -> str:
    """Return the path by which a module comes first, of one that is at several."""
    return next(name for name, part in modules.items() if part is modules[path])


def _no_place(module: nn.Module, found: Probe, hook_name: str, modules: list[str]) -> str:
    """Return the sentence that refuses a name; a place is never offered for another one."""
    asked = re.match(r"(?:\w+\.)*(?:blocks|layers?|h)\.(\d+)", hook_name)
    if found.n_blocks and asked and int(asked.group(1)) >= found.n_blocks:
        return (
            f"hook_name={hook_name}: layer {asked.group(1)} is out of range, this model has "
            f"layers 0 to {found.n_blocks - 1}"
        )
    kind, named = type(module).__name__, re.fullmatch(r"blocks\.\d+\.(.+)", hook_name)
    if named and found.failure:
        return (
            f"hook_name={hook_name}: {kind} could not be run on tokens alone to find what has "
            f"that name ({found.failure}); give a module's path"
        )
    if named and (named[1] in NAMES or not found.sites):
        return (
            f"hook_name={hook_name}: nothing in that block of {kind} is what TransformerLens "
            f"means by {named[1]}, {NAMES.get(named[1], 'a place in a block')}; "
            "give the path of a module that you mean"
        )
    names = [site.hook_name for site in found.sites]
    near = nearest(hook_name, [*names, *modules[1:]])
    return f"hook_name={hook_name} is no place in this model{near}"


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
        f"{place.hook_name} was read at {place.module}, which this model does not "
        f"have{nearest(place.module, modules)}; give the model in which it was read",
    )
    calls = probe(module).calls[place.module]
    require(
        calls < 2 or (place.call is not None and place.call < calls),
        f"{place.hook_name} was read at {place.module}, which {_several(place.path, calls)}",
    )
    return place


class _Stop(Exception):
    """Ends a forward pass once everything asked for has been read."""


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
        module(tokens, **without_cache(module), **mask)
    unseen = [point for point in points if point.hook_name not in seen]
    if unseen:
        raise _uncalled(unseen[0])
    return seen


def measured(module: nn.Module, sites: Sequence[Site]) -> list[Site]:
    """Return the sites with their widths.

    Not every model without weights can be run: there they keep a width of 0.

    Raises:
        UserError: if the model never calls a site's module, or it gives something else than one
            vector a token.
    """
    found = probe(module)
    if found.failure:
        return [*sites]
    widths = []
    for site in sites:
        if not found.calls[site.module]:
            raise _uncalled(site)
        widths_there = found.flat_widths if site.flat else found.widths
        width = widths_there.get((site.module, site.side))
        if width is None:
            one_vector_a_token(site.hook_name, None)
        widths.append(width or 0)
    return [replace(site, width=width) for site, width in zip(sites, widths, strict=True)]


def _uncalled(site: Site) -> UserError:
    return UserError(
        f"hook_name={site.hook_name} is a module that the model does not call; choose one "
        "that computes something, such as a block"
    )
