"""What a model does between its last block and its logits, measured by running it.

A head reads the residual stream through a norm, `gain * (x - mean?) / spread + bias`, and in
some models through a projection; some models scale or cap the logits behind it. Which module
the norm is, what its gain is and whether it takes the mean off is found by a probe and not by
names, and what was found is compared with what the model computes. Any other form is refused.
"""

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.base import UserError, require
from sae.models.calls import without_cache
from sae.models.traced import Call, calls_of, given_instead, probe_tokens

# Positions of a probe; the second half are the negatives of the first, which tells what a norm
# multiplies with from what it adds.
_N_PROBES = 8
# Far above the small number that norms add to the spread.
_PROBE_SCALE = 100.0
# A power of two, so that no precision rounds it, and too small for any cap to bend it.
_SMALL_LOGIT = 2.0**-7


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm as a formula, its bias left out: `gain * (x - mean) / spread`."""

    gain: Float[Tensor, " d_model"]
    centred: bool
    """Whether it takes the mean off what it is given."""


@dataclass(frozen=True, slots=True)
class Tail:
    """The way from the last block to the logits."""

    head: nn.Linear
    projections: tuple[nn.Linear, ...]
    """Linear modules between the norm and the head, the one before the head first."""
    norm: Norm | None
    scale: float
    """What the logits are multiplied with; a cap leaves those near zero as they are."""
    blocks: frozenset[str]
    """Paths of the model's blocks."""
    norm_in_block: bool
    """Whether the norm is the last block's own, so that what blocks give out is normed."""


def tail_of(module: Any) -> Tail:
    """Measure the tail of a model with weights, by two forward passes over a few tokens.

    Raises:
        UserError: if it has no head, or computes something of another form.
    """
    head = module.get_output_embeddings()
    require(head is not None, "the model has no output embedding, so it gives no logits")
    require(
        isinstance(head, nn.Linear) and head.weight.is_floating_point(),
        f"the model's output embedding is a {type(head).__name__} and not a plain linear layer",
    )
    tokens = probe_tokens(module, _N_PROBES).to(head.weight.device)
    calls = calls_of(module, tokens)
    path = _path_to(head, calls)
    blocks = _blocks(module, calls)
    last = next((call for call in reversed(calls) if call.name in blocks), None)
    own = last is not None and path.norm is not None and _is_in(path.norm.name, last.name)
    reads = path.norm.returned if own and path.norm else path.start
    require(
        last is not None and _in_proportion(reads, last.returned),
        "the model computes more than a norm between its last block and its logits",
    )
    norm = None if path.norm is None else _formula(path.norm)
    found = Tail(head, path.projections, norm, 1.0, blocks, own)
    return replace(found, scale=_measured_scale(module, tokens, path, found))


@dataclass(frozen=True, slots=True)
class _Path:
    """The modules that the head's input came through."""

    projections: tuple[nn.Linear, ...]
    norm: Call | None
    entry: nn.Module
    """The first of them, or the head itself if there is none."""
    start: Tensor
    """What the first of them is given."""


def _path_to(head: nn.Module, calls: Sequence[Call]) -> _Path:
    """Follow the head's input back, up to a norm or to what no single module gave."""
    at = max((i for i, call in enumerate(calls) if call.module is head), default=None)
    require(at is not None, "the model does not call its output embedding")
    entry, projections = head, list[nn.Linear]()
    tensor = _floats(calls[at or 0].given)
    while (at := _source(tensor, calls[:at])) is not None:
        module, given = calls[at].module, _floats(calls[at].given)
        if isinstance(module, nn.Linear):
            entry = module
            projections.append(module)
        elif not _in_proportion(given, tensor):
            return _Path(tuple(projections), calls[at], module, given)
        tensor = given
    return _Path(tuple(projections), None, entry, tensor)


def _floats(tensor: Tensor | None) -> Tensor:
    require(tensor is not None, "the model passes on activations in a form that cannot be read")
    return torch.empty(0) if tensor is None else tensor


def _source(tensor: Tensor, calls: Sequence[Call]) -> int | None:
    """Return the last call of a module without parts of its own that returned the tensor."""
    found = (
        i
        for i in reversed(range(len(calls)))
        if not any(calls[i].module.children()) and _in_proportion(calls[i].returned, tensor)
    )
    return next(found, None)


def _in_proportion(a: Tensor | None, b: Tensor | None) -> bool:
    # Some models divide the stream by a number on the way, which no norm sees.
    if a is None or b is None or a.shape != b.shape:
        return False
    cosine = torch.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0)
    return float(cosine) > 1 - 1e-5


def _blocks(module: nn.Module, calls: Sequence[Call]) -> frozenset[str]:
    """Return the paths of the list of modules, in no other such list, that was used last."""
    lists = [name for name, part in module.named_modules() if isinstance(part, nn.ModuleList)]
    outer = {name for name in lists if not any(_is_in(name, other) for other in lists)}
    parents = (call.name.rpartition(".")[0] for call in reversed(calls))
    last = next((parent for parent in parents if parent in outer), None)
    names = (name for name, _ in module.named_modules())
    return frozenset(name for name in names if name.rpartition(".")[0] == last)


def _is_in(name: str, ancestor: str) -> bool:
    return name.startswith(f"{ancestor}.")


def _probes(width: int) -> Float[Tensor, "probe d_model"]:
    """Activations whose mean is not zero, in float64; the second half are negatives."""
    draw = torch.Generator().manual_seed(0)
    half = torch.randn(_N_PROBES // 2, width, generator=draw, dtype=torch.float64) + 0.5
    return _PROBE_SCALE * torch.cat([half, -half])


def _odd(x: Float[Tensor, "probe d"]) -> Float[Tensor, "half d"]:
    """Return the part that changes its sign with the probes."""
    positive, negative = x.double().cpu().chunk(2)
    return (positive - negative) / 2


def _spread_taken_off(x: Tensor, *, centred: bool) -> Tensor:
    x = x - x.mean(-1, keepdim=True) if centred else x
    return x / x.square().mean(-1, keepdim=True).sqrt()


def _formula(call: Call) -> Norm:
    found = norm_formula(call.module, _floats(call.given).shape[-1])
    if found is None:
        kind = type(call.module).__name__
        raise UserError(
            f"the input of the model's head comes from {call.name} ({kind}), "
            "which is not a norm"
        )
    return found


def norm_formula(module: nn.Module, width: int) -> Norm | None:
    """Measure a norm of activations of some width: which of two forms it has, and its gain.

    Returns:
        None if it has neither.
    """
    probes = _probes(width)
    norm: Any = copy.deepcopy(module).cpu().double()
    try:
        with torch.inference_mode():
            found = _odd(norm(probes))
    except (TypeError, ValueError, RuntimeError):
        return None
    fits = []
    for centred in (False, True):
        unit = _spread_taken_off(_odd(probes), centred=centred)
        gain = (found * unit).sum(0) / unit.square().sum(0)
        left = float((found - gain * unit).norm() / found.norm())
        fits.append((left, Norm(_exact(gain, norm), centred)))
    left, best = min(fits, key=lambda fit: fit[0])
    return best if left <= 1e-4 else None


def _exact(gain: Float[Tensor, " d"], norm: nn.Module) -> Float[Tensor, " d"]:
    """Return the gain without the rounding of its measurement, where the norm stores it."""
    stored = [p.detach() for p in norm.parameters() if p.shape == gain.shape]
    # In float32, as models compute it.
    offered = [w.float() for w in stored] + [1 + w.float() for w in stored]
    offered.append(torch.ones(len(gain)))
    nearest = min(offered, key=lambda w: float((w - gain).abs().max()))
    error = float((nearest - gain).abs().max() / gain.abs().max())
    return nearest if error < 1e-5 else gain.float()


def _measured_scale(
    module: nn.Module, tokens: Int[Tensor, "sequence position"], path: _Path, tail: Tail
) -> float:
    """Return what logits are multiplied with, and check the whole tail on the way.

    The model runs with probes in place of the stream before the norm, and with logits of ours
    in place of the head's.

    Raises:
        UserError: if it does not compute what the tail says, or mixes logits.
    """
    probes = _probes(path.start.shape[-1])
    seen = []

    def exchange(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        seen.append(args[0])
        return _our_logits(output)

    with ExitStack() as hooks, torch.inference_mode():
        hooks.enter_context(given_instead(path.entry, probes[None].to(path.start)))
        hooks.callback(tail.head.register_forward_hook(exchange).remove)
        logits = module(tokens, **without_cache(module)).logits
    expected = _odd(probes)
    if tail.norm is not None:
        unit = _spread_taken_off(expected, centred=tail.norm.centred)
        expected = tail.norm.gain.double() * unit
    for projection in reversed(tail.projections):
        expected = expected @ projection.weight.double().cpu().t()
    found = _odd(seen[-1][0])
    before_head = float((found * expected).sum() / expected.square().sum())
    tolerance = torch.finfo(path.start.dtype).eps ** 0.5
    require(
        float((found - before_head * expected).norm() / found.norm()) < tolerance,
        "the input of the model's head is not the output of its last norm",
    )
    scale = before_head * _slope(logits[0].double(), tolerance)
    return 1.0 if abs(scale - 1) < tolerance else scale


def _our_logits(like: Float[Tensor, "1 probe vocabulary"]) -> Float[Tensor, "1 probe vocab"]:
    """Zeros at first, then small ones, then rising ones and falling ones."""
    ours = torch.zeros_like(like)
    ours[0, 1] = _SMALL_LOGIT
    ours[0, 2] = torch.linspace(-8, 8, like.shape[2]).to(like)
    ours[0, 3] = ours[0, 2].flip(0)
    return ours


def _slope(logits: Float[Tensor, "probe vocabulary"], tolerance: float) -> float:
    """Return what small logits were multiplied with on their way out, in order and unmixed."""
    zero, small, rising, falling = logits[:4]
    same = (rising - falling.flip(0)).abs().max() <= tolerance * rising.abs().max()
    slope = float((small - zero).mean()) / _SMALL_LOGIT
    require(
        bool(same) and bool((rising.diff() >= 0).all()) and slope > 0,
        "the model does something to its logits other than scaling or capping them",
    )
    return slope
