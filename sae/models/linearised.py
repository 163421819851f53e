"""A forward pass whose gradients are those of a linear model that gives the same values.

RelP's rules (Rezaei Jafari et al. 2025, "RelP: Faithful and efficient circuit discovery via
relevance patching", arXiv 2508.21258): what a norm divides by is a constant, and so are
attention patterns and the ratio of what an activation function gives to what it is given; of
a product of two branches, as behind a gate, each gets half of the gradient. No value changes,
only what gradients are.

Then every part is linear, or a product that is shared out whole. So the value of a linear
function of the logits equals the sum, over the stream that goes in and all biases, of each
number times its gradient. That is tried out on a few tokens, biases taken away. A model for
which it does not hold computes something that no rule is for, and is refused.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from sae.base import UserError
from sae.models.calls import computing, hooked, uncompiled, without_cache
from sae.models.probe import probe, quietly
from sae.models.site import Site
from sae.models.tail import norm_formula
from sae.models.traced import probe_tokens

_TOLERANCE = 1e-3
"""Relative difference of both sums that rounding may leave."""
_SMALL = 1e-4
"""Where an activation function is given less than this, its ratio is taken here instead."""
_POSITIONS = 6


@dataclass(frozen=True, slots=True)
class _Rules:
    """What is known of a model before it is linearised."""

    gates: frozenset[str]
    """Paths of the modules that read a product of two branches."""
    norms: Mapping[str, "_Scaled"]
    wrong: str | None = None
    """Why the rules are not enough for it, if they are not."""


_known: "WeakKeyDictionary[nn.Module, _Rules]" = WeakKeyDictionary()


class _GradientOf(torch.autograd.Function):
    """The value of one tensor with the gradient of another."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, linear: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0]


def value_with_gradient_of(
    value: Float[Tensor, "*shape"], linear: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Return `value`, through which gradients go as if it were `linear`."""
    found: Tensor = _GradientOf.apply(value.detach(), linear)  # type: ignore[no-untyped-call]
    return found


@contextmanager
def linearised(module: nn.Module) -> Iterator[None]:
    """Inside this context gradients of forward passes are those of a linear model.

    Values are the same as ever, to the bit.

    Raises:
        UserError: if a model computes something that no rule is for.
    """
    if module not in _known:
        rules = _Rules(_gates(module), _norms(module))
        _known[module] = replace(rules, wrong=_try(module, rules))
    rules = _known[module]
    if rules.wrong is not None:
        raise UserError(
            f"there is no known way to linearise {type(module).__name__}: {rules.wrong}; "
            "use gradients as they are, or exact patching"
        )
    with _linear(module, rules):
        yield


@contextmanager
def _linear(module: nn.Module, rules: _Rules) -> Iterator[None]:
    with ExitStack() as undo:
        undo.enter_context(uncompiled())
        undo.enter_context(_Constants())
        for path, part in module.named_modules():
            if path in rules.norms:
                undo.enter_context(computing(part, rules.norms[path]))
            elif _is_activation(part):
                undo.enter_context(computing(part, _in_ratio))
            elif path in rules.gates:
                undo.callback(part.register_forward_pre_hook(_halve).remove)
        yield


class _Constants(TorchFunctionMode):
    """Attention patterns are constants, and so is the ratio of a cap, a tanh in no module."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if func is nn.functional.scaled_dot_product_attention:
            query, key, *others = args
            return func(query.detach(), key.detach(), *others, **kwargs)
        found = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "softmax":
            return found.detach()
        if name == "tanh":
            return _in_ratio(torch.tanh, args[0])
        return found


class _Scaled:
    """A norm whose divisor is a constant."""

    def __init__(self, part: nn.Module) -> None:
        self.part = part
        self.centred: bool | None = None
        """Whether it takes the mean off, once that is measured."""

    def __call__(self, own: Callable[..., Tensor], x: Tensor, *others: Any) -> Tensor:
        if others:
            raise UserError(f"{type(self.part).__name__} normalises more than activations")
        with torch.no_grad():
            value = own(x)
        if not x.requires_grad:
            return value
        with torch.no_grad():
            if self.centred is None:
                self.centred = self._is_centred(x.shape[-1])
            # What it multiplies with and adds, from what it makes of numbers and of others of
            # the opposite sign. A large odd number makes no difference to its epsilon.
            known = torch.linspace(50, 150, x.shape[-1]).to(x)
            known = known * (-1) ** torch.arange(x.shape[-1], device=x.device)
            up, down = own(torch.stack([known, -known])[None]).float()[0]
            unit = self._centred(known.float())
            gain, offset = (up - down) / 2 / unit, (up + down) / 2
        linear = self._centred(x.float()) * gain
        with torch.no_grad():
            length = linear.square().sum(-1, keepdim=True).clamp_min(1e-30)
            scale = ((value.float() - offset) * linear).sum(-1, keepdim=True) / length
        return value_with_gradient_of(value, (linear * scale).to(value))

    def _centred(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def _is_centred(self, width: int) -> bool:
        norm = norm_formula(self.part, width)
        if norm is None:
            raise UserError(
                f"{type(self.part).__name__} is not a norm that divides by a spread"
            )
        return norm.centred


def _in_ratio(own: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return what an activation function gives, its ratio to what it is given a constant."""
    with torch.no_grad():
        value = own(x)
        small = x.abs() < _SMALL
        near = torch.where(small, _SMALL, x)
        ratio = torch.where(small, own(near), value) / near
    return value_with_gradient_of(value, x * ratio)


def _halve(_: nn.Module, args: Any) -> Any:
    """Let half of the gradient through to a product of two branches, so that each gets half."""
    x, *others = args
    return (value_with_gradient_of(x, x / 2), *others)


def _norms(module: nn.Module) -> dict[str, _Scaled]:
    return {
        path: _Scaled(part)
        for path, part in module.named_modules()
        if "norm" in type(part).__name__.lower() and not any(part.children())
    }


def _is_activation(part: nn.Module) -> bool:
    """Return whether a module is a function of each number alone, such as GELU."""
    from transformers.activations import ACT2CLS

    kinds = {kind[0] if isinstance(kind, tuple) else kind for kind in ACT2CLS.values()}
    return type(part) in kinds and not any(part.parameters())


def _gates(module: nn.Module) -> frozenset[str]:
    """Return the paths of the modules that read a product of two branches.

    It is what the last projection of an MLP reads if that is not what its activation function
    gives; that it is a product, the sum over all shares tells.
    """
    found = set()
    for site in probe(module).sites:
        if site.hook_name.endswith("mlp.hook_post"):
            found.add(site.module)
    return frozenset(found - _read_from_activations(module, found))


def _read_from_activations(module: nn.Module, paths: set[str]) -> set[str]:
    """Return which of some modules read just what an activation function gave."""
    given_: dict[str, Tensor] = {}
    gave: list[Tensor] = []
    tokens = _tokens(module)
    with ExitStack() as hooks, quietly(module, tokens.device), uncompiled():
        for path, part in module.named_modules():
            if path in paths:

                def before(_: nn.Module, args: Any, path: str = path) -> None:
                    given_[path] = args[0]

                hooks.callback(part.register_forward_pre_hook(before).remove)
            elif _is_activation(part):

                def after(_: nn.Module, __: Any, output: Tensor) -> None:
                    gave.append(output)

                hooks.callback(part.register_forward_hook(after).remove)
        module(tokens, **without_cache(module))
    return {path for path, x in given_.items() if any(_same(x, y) for y in gave)}


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _tokens(module: Any) -> Int[Tensor, "1 position"]:
    device = module.get_input_embeddings().weight.device
    return probe_tokens(module, _POSITIONS).to(device)


def _try(module: Any, rules: _Rules) -> str | None:
    """Return what is wrong with the rules for a model: None if all shares make up the whole."""
    blocks = probe(module).blocks
    if not blocks:
        return "it has no blocks that hand one stream of activations on"
    biases = {
        name: torch.zeros_like(weight)
        for name, weight in module.named_parameters()
        if name.endswith("bias")
    }
    stream: list[Tensor] = []

    def leaf(x: Tensor) -> Tensor:
        stream.append(x.detach().clone().requires_grad_())
        return stream[0]

    tokens = _tokens(module)
    settings = without_cache(module)
    first = Site("stream", blocks[0], "input")
    try:
        with torch.enable_grad(), hooked(module, first, leaf), _linear(module, rules):
            logits = functional_call(module, biases, (tokens,), settings)[0].double()
            draw = torch.Generator().manual_seed(0)
            weights = torch.randn(logits.shape, generator=draw, dtype=logits.dtype)
            total = (logits * weights.to(logits)).sum()
            (gradient,) = torch.autograd.grad(total, stream)
    except UserError as error:
        return str(error)
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}".split("\n")[0]
    shares = float((gradient.double() * stream[0].detach().double()).sum())
    tolerance = max(_TOLERANCE, 8 * torch.finfo(stream[0].dtype).eps)
    size = float((logits.detach() * weights.to(logits)).norm())
    if abs(shares - float(total.detach())) <= tolerance * size:
        return None
    return "it computes something else than norms, attention, activations and gates"
