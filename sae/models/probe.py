"""A forward pass over a few tokens that finds what a model's places hold, before any is used.

It finds the list of blocks, which places in them have a TransformerLens name (`identities`),
how wide they are, and how often each module is called.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sae.models.calls import given, hooked, returned, uncompiled, without_cache
from sae.models.identities import Block, Held, Middle, Place, holds, value_of
from sae.models.site import Site, named_in_stream
from sae.models.skeleton import made_up
from sae.models.traced import probe_tokens

_SEQUENCES, _POSITIONS = 2, 6


@dataclass
class Probe:
    """What a forward pass over a few tokens found in a model."""

    sites: list[Site] = field(default_factory=list)
    """The places that have a TransformerLens name, block by block."""
    blocks: tuple[str, ...] = ()
    """Paths of the blocks that hand the stream on, in order; none if one is called twice."""
    n_blocks: int = 0
    beside: dict[str, tuple[None, ...] | list[None] | None] = field(default_factory=dict)
    """A place for each thing that a block returns behind its activations; None where it returns
    them alone."""
    calls: Counter[str] = field(default_factory=Counter)
    """How often each module is called in one forward pass."""
    widths: dict[Place, int] = field(default_factory=dict)
    """Sizes of activations, where a module is given or returns one vector a token."""
    flat_widths: dict[Place, int] = field(default_factory=dict)
    """The same where all tokens may be in one row; some may also be of an expert's choice."""
    failure: str | None = None
    """What the model's code said if it could not be run; it has no names then."""


_probes: "WeakKeyDictionary[nn.Module, Probe]" = WeakKeyDictionary()


def probe(module: nn.Module) -> Probe:
    """Return what a forward pass over a few tokens finds in a model, which is run once.

    A model without weights is run on made-up ones: which names hold follows from its code.
    """
    if module not in _probes:
        if next(iter(module.parameters())).is_meta:
            # Whoever made a model without weights may make everything without them.
            with torch.device("cpu"):
                _probes[module] = _probed(made_up(module))
        else:
            _probes[module] = _probed(module)
    return _probes[module]


def _probed(module: nn.Module) -> Probe:
    found, seen = Probe(), _Seen(module)
    try:
        device = module.get_input_embeddings().weight.device  # type: ignore[operator]
        tokens = probe_tokens(module, _SEQUENCES * _POSITIONS).to(device)
        tokens = tokens.view(_SEQUENCES, _POSITIONS)
        with quietly(module, tokens.device), seen.watching(found):
            module(tokens, **without_cache(module))
        blocks = _stream(seen.blocks)
        outputs = [block.out for listed in seen.blocks.values() for block in listed]
        if any(bool(out.isnan().any()) for out in outputs):
            # No sum tells anything then, and nothing else is wrong with the names.
            found.failure = "its activations hold NaN"
            return found
        sites = _named(blocks)
        with quietly(module, tokens.device):
            found.sites = [*_edited_in_the_middle(module, tokens, blocks, sites)]
    # A model's own code may ask for anything else than tokens, and fail in any way.
    except Exception as error:
        found.failure = f"{type(error).__name__}: {error}".strip().split("\n")[0]
        return found
    found.sites = [site for site in found.sites if found.calls[site.module] == 1]
    found.n_blocks = len(blocks)
    paths = tuple(block.path for block in blocks)
    found.blocks = paths if all(found.calls[path] == 1 for path in paths) else ()
    return found


@contextmanager
def quietly(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Run a model without a trace: no gradients, no dropout, random numbers as they were."""
    training = [part for part in module.modules() if part.training]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode():
        try:
            for part in training:
                part.training = False
            yield
        finally:
            for part in training:
                part.training = True


@dataclass(frozen=True)
class _Found:
    """A block as a probe saw it; its tensors are gone but for the two ends."""

    path: str
    names: dict[str, Place]
    flat: set[Place]
    """Places where the tokens of all sequences are in one row."""
    middle: Middle | None
    recognised: bool
    pre: Tensor
    out: Tensor


class _Seen:
    """What a forward pass shows: calls and widths of modules, and of blocks the rest."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.lists = _outermost_lists(module)
        self.blocks: dict[str, list[_Found]] = {path: [] for path in self.lists}
        self.open: dict[str, dict[Place, Held]] = {}

    @contextmanager
    def watching(self, found: Probe) -> Iterator[None]:
        with ExitStack() as hooks:
            for path, part in self.module.named_modules():
                block = self._block_of(path)
                before = partial(self._before, found, path, block)
                after = partial(self._after, found, path, block)
                for handle in (
                    part.register_forward_pre_hook(before, with_kwargs=True),
                    part.register_forward_hook(after),
                ):
                    hooks.callback(handle.remove)
            hooks.enter_context(uncompiled())
            yield

    def _block_of(self, path: str) -> str | None:
        """Return the block that a module is or is in."""
        for blocks in self.lists:
            if path.startswith(f"{blocks}."):
                return f"{blocks}.{path.removeprefix(f'{blocks}.').split('.')[0]}"
        return None

    def _before(
        self, found: Probe, path: str, block: str | None, _: nn.Module, args: Any, kwargs: Any
    ) -> None:
        found.calls[path] += 1
        if path == block:
            self.open[path] = {}
        self._note(found, (path, "input"), block, given(args, kwargs))

    def _after(
        self, found: Probe, path: str, block: str | None, _: nn.Module, __: Any, output: Any
    ) -> None:
        self._note(found, (path, "output"), block, returned(output))
        if path == block:
            several = isinstance(output, (tuple, list))
            found.beside[path] = type(output)([None] * (len(output) - 1)) if several else None
            self._close(found, path)

    def _note(self, found: Probe, place: Place, block: str | None, x: object) -> None:
        shape = (_SEQUENCES, _POSITIONS)
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return
        path, side = place
        flat = x.dim() == 2 and len(x) == _SEQUENCES * _POSITIONS
        if not flat and (x.dim() != 3 or x.shape[:2] != shape):
            return
        (found.flat_widths if flat else found.widths)[place] = x.shape[-1]
        if block in self.open:
            inside = path.removeprefix(str(block)).removeprefix(".")
            self.open[str(block)][inside, side] = Held(x.clone(), x)

    def _close(self, found: Probe, path: str) -> None:
        seen = self.open.pop(path)
        # Of a module that is called several times, nothing tells which call is meant.
        once = {
            (inside, side): held
            for (inside, side), held in seen.items()
            if found.calls[f"{path}.{inside}".rstrip(".")] == 1
        }
        ends = [once[place].copy for place in (("", "input"), ("", "output")) if place in once]
        if len(ends) < 2 or ends[0].shape != ends[1].shape or ends[0].dim() != 3:
            return
        block = Block(self.module.get_submodule(path), once)
        names, middle = block.names(), block.middle()
        flat = {place for place, held in once.items() if held.copy.dim() == 2}
        blocks = path.rpartition(".")[0]
        known = block.recognised
        self.blocks[blocks].append(_Found(path, names, flat, middle, known, *ends))


def _outermost_lists(module: nn.Module) -> list[str]:
    found: list[str] = []
    for path, part in module.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if isinstance(part, nn.ModuleList) and not inside:
            found.append(path)
    return found


def _stream(lists: Mapping[str, list[_Found]]) -> list[_Found]:
    """Return the blocks of the longest list in which each reads what the one before returns."""

    def links(blocks: list[_Found]) -> int:
        return sum(torch.equal(one.out, other.pre) for one, other in pairwise(blocks))

    known = [b for b in lists.values() if links(b) or (len(b) == 1 and b[0].recognised)]
    return max(known, key=links, default=[])


def _named(blocks: list[_Found]) -> list[Site]:
    """Return the sites of all blocks; where two blocks do not meet, neither end has a name."""
    sites = []
    for at, block in enumerate(blocks):
        names = dict(block.names)
        if at and not torch.equal(blocks[at - 1].out, block.pre):
            del names["hook_resid_pre"]
        if blocks[at + 1 :] and not torch.equal(block.out, blocks[at + 1].pre):
            names = {name: place for name, place in names.items() if place != ("", "output")}
        index = block.path.rpartition(".")[2]
        for name, (inside, side) in names.items():
            hook_name = f"blocks.{index}.{name}"
            path = f"{block.path}.{inside}".rstrip(".")
            site = Site(hook_name, path, side, in_stream=named_in_stream(hook_name))
            sites.append(replace(site, flat=(inside, side) in block.flat))
    return sites


def _edited_in_the_middle(
    module: nn.Module, tokens: Tensor, blocks: list[_Found], sites: list[Site]
) -> Iterator[Site]:
    """Yield the sites with where the middle of a stream is put aside.

    A middle whose change does not come out as one of the stream is left out.
    """
    nudged = {b.path: _Nudged(b.path, b.middle, b.flat) for b in blocks if b.middle}
    with ExitStack() as hooks:
        for one in nudged.values():
            one.watch(module, hooks)
        if nudged:
            module(tokens, **without_cache(module))
    for site in sites:
        if not site.hook_name.endswith("hook_resid_mid"):
            yield site
            continue
        block = next(path for path in nudged if site.module.startswith(f"{path}."))
        if nudged[block].reaches_the_stream(copied=False):
            yield site
        elif nudged[block].reaches_the_stream(copied=True):
            yield replace(site, copied_in=block)


class _Nudged:
    """A block in whose middle something was added, and the sum that follows then."""

    def __init__(self, path: str, middle: Middle, flat: set[Place]) -> None:
        self.path, self.middle, self.flat = path, middle, flat
        self.seen: dict[str, Tensor] = {}

    def watch(self, module: nn.Module, hooks: ExitStack) -> None:
        def nudge(x: Tensor) -> Tensor:
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
            self.seen["old"] = x.clone()
            new = x + noise.to(x) * x.float().square().mean().sqrt().to(x)
            self.seen["new"] = new.clone()
            return new

        def keep(name: str, x: Tensor) -> None:
            self.seen[name] = x.clone()

        middle = self.middle
        hooks.enter_context(hooked(module, self._site(middle.mid), nudge))
        others = {"mlp": middle.mlp, "total": middle.total}
        if middle.base is not None:
            others["base"] = middle.base
        for name, place in others.items():
            hooks.enter_context(hooked(module, self._site(place), partial(keep, name)))

    def _site(self, place: Place) -> Site:
        inside, side = place
        path = f"{self.path}.{inside}".rstrip(".")
        return Site("probe", path, side, flat=place in self.flat)

    def reaches_the_stream(self, *, copied: bool) -> bool:
        """Return whether what the block adds the MLP to is the new middle, or else the old."""
        base = self.seen["old" if copied else "new"]
        if not copied:
            base = self.seen.get("base", base)
        terms = value_of(base), value_of(self.seen["mlp"])
        return holds(value_of(self.seen["total"]), terms, (1.0, self.middle.factor))
