"""Running a model from one of its blocks on: the stream before it is given, not computed.

All blocks are called as ever, but those before the given one return the given stream at once.
So embeddings, masks and position ids are the model's own, and nothing of a family is written
down again. That the stream is really all that goes from block to block is tried out on a few
tokens first: where it is not, as where blocks share keys and values, the model is refused.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.base import UserError, require
from sae.models.calls import computing, given, returned, uncompiled, without_cache
from sae.models.probe import probe, quietly
from sae.models.site import Site
from sae.models.traced import probe_tokens

_SEQUENCES, _POSITIONS = 2, 6


@dataclass(frozen=True, slots=True)
class _Trial:
    """What a model gives for a few tokens, with which it is compared when it is resumed."""

    tokens: Int[Tensor, "sequence position"]
    streams: list[Float[Tensor, "sequence position d_model"]]
    """The stream before each block, and behind the last one."""
    expected: Float[Tensor, "sequence position width"]
    wrong: dict[int, str | None] = field(default_factory=dict)
    """Why it cannot be resumed at each block that was tried; None where it can."""


_trials: "WeakKeyDictionary[nn.Module, _Trial]" = WeakKeyDictionary()


def n_blocks(module: nn.Module) -> int:
    """Return the number of blocks that a model's stream of activations goes through."""
    return len(probe(module).blocks)


def first_block(module: nn.Module, site: Site) -> int:
    """Return the block to resume at for a change at a site: what is before it stays the same.

    At what block 3 returns it is 4, anywhere inside of block 3 it is 3, and 0 outside of all.
    """
    for i, path in enumerate(probe(module).blocks):
        if site.module == path:
            return i + (site.side == "output")
        if site.module.startswith(f"{path}."):
            return i
    return 0


@contextmanager
def resumed(
    module: nn.Module, block: int, hidden: Float[Tensor, "#sequence position d_model"]
) -> Iterator[None]:
    """Inside this context forward passes of `module` begin at a block, on a given stream.

    They are to be of as many positions as `hidden`, and of as many sequences, or of any number
    if it has a single one; gradients reach `hidden`. What comes out is what the whole model
    gives whose stream is this one there, to the bit.

    Args:
        block: number of the first block that is computed; that of all blocks leaves only what
            comes after them, which makes logits of a stream (a logit lens).
        hidden: the stream that it reads.

    Raises:
        UserError: if there is no such block, or more than the stream reaches it.
    """
    _check(module, block)
    with _replaced(module, block, hidden):
        yield


def resume(
    module: nn.Module,
    block: int,
    hidden: Float[Tensor, "sequence position d_model"],
    tokens: Int[Tensor, "sequence position"],
) -> Any:
    """Return what a model gives for `tokens` from a block on, as `resumed` says."""
    with resumed(module, block, hidden):
        return module(tokens, **without_cache(module))


@contextmanager
def seen_before(
    module: nn.Module, block: int
) -> Iterator[list[Float[Tensor, "sequence position d_model"]]]:
    """Inside this context the stream before a block is kept, of each forward pass in turn."""
    found: list[Tensor] = []
    paths = probe(module).blocks
    with ExitStack() as hooks:
        if block < len(paths):

            def before(_: nn.Module, args: Any, kwargs: Any) -> None:
                found.append(given(args, kwargs))

            place = module.get_submodule(paths[block])
            handle = place.register_forward_pre_hook(before, with_kwargs=True)
        else:

            def after(_: nn.Module, __: Any, output: Any) -> None:
                found.append(returned(output))

            handle = module.get_submodule(paths[-1]).register_forward_hook(after)
        hooks.callback(handle.remove)
        hooks.enter_context(uncompiled())
        yield found


@contextmanager
def replayed(
    module: nn.Module, sites: Sequence[Site], tokens: Int[Tensor, "sequence position"]
) -> Iterator[Any]:
    """Inside this context blocks that end before all `sites` are not computed again.

    The model is run once on `tokens`; forward passes inside, without gradients, are to be of
    them, or of any number of copies if they are one sequence, changed or read at the sites. Of
    30 blocks those up to the tenth are then computed once and not once a copy. A model that
    cannot be resumed there is run as a whole, with the same results.

    Yields:
        What the model returned for `tokens`, nothing changed.
    """
    block = min(first_block(module, site) for site in sites)
    with ExitStack() as undo:
        undo.enter_context(uncompiled())
        if block and can_resume(module, block):
            with torch.inference_mode(), seen_before(module, block) as seen:
                plain = module(tokens, **without_cache(module))
            undo.enter_context(_replaced(module, block, seen[0]))
        else:
            with torch.inference_mode():
                plain = module(tokens, **without_cache(module))
        yield plain


def can_resume(module: nn.Module, block: int) -> bool:
    """Return whether a model can be resumed at a block."""
    return _wrong(module, block) is None


def _check(module: nn.Module, block: int) -> None:
    found = probe(module)
    require(
        bool(found.blocks),
        f"{type(module).__name__} has no blocks that pass on a single stream of "
        "activations, so it cannot be run from the middle",
    )
    require(
        0 <= block <= len(found.blocks),
        f"block {block} is out of range, this model has blocks 0 to {len(found.blocks) - 1}",
    )
    wrong = _wrong(module, block)
    if wrong is not None:
        raise UserError(f"{type(module).__name__} cannot be run from block {block} on: {wrong}")


def _wrong(module: nn.Module, block: int) -> str | None:
    if not probe(module).blocks:
        return "it has no stream"
    if module not in _trials:
        _trials[module] = _trial(module)
    trial = _trials[module]
    if block not in trial.wrong:
        trial.wrong[block] = _compared(module, block, trial)
    return trial.wrong[block]


def _trial(module: Any) -> _Trial:
    blocks = range(len(probe(module).blocks) + 1)
    device = module.get_input_embeddings().weight.device
    tokens = probe_tokens(module, _SEQUENCES * _POSITIONS).view(_SEQUENCES, -1).to(device)
    with quietly(module, device), ExitStack() as seeing:
        seen = [seeing.enter_context(seen_before(module, block)) for block in blocks]
        expected = module(tokens, **without_cache(module))[0]
    return _Trial(tokens, [streams[0] for streams in seen], expected)


def _compared(module: nn.Module, block: int, trial: _Trial) -> str | None:
    """Return what is wrong with a model that is resumed at a block, if anything is."""
    tokens = trial.tokens
    try:
        with quietly(module, tokens.device):
            # Whatever a part has put aside for later is of other tokens then.
            module(tokens.flip(1), **without_cache(module))
            with _replaced(module, block, trial.streams[block]):
                found = module(tokens, **without_cache(module))[0]
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}".split("\n")[0]
    if torch.equal(found, trial.expected):
        return None
    return "more than one stream of activations goes from block to block"


@contextmanager
def _replaced(module: nn.Module, block: int, hidden: Tensor) -> Iterator[None]:
    with ExitStack() as undo:
        undo.enter_context(uncompiled())
        for path in probe(module).blocks[:block]:
            place = module.get_submodule(path)
            undo.enter_context(computing(place, _returning(hidden, probe(module).beside[path])))
        yield


def _returning(
    hidden: Tensor, beside: tuple[None, ...] | list[None] | None
) -> Callable[..., Any]:
    """Return what lets a block return a stream, in the form that it returns its own in.

    What else it returns, such as attention weights that nobody has asked for, is None then.
    """

    def forward(_: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        n = len(given(args, kwargs))
        own = hidden if len(hidden) == n else hidden.expand(n, -1, -1)
        several: Sequence[Any] = (own, *(beside or ()))
        return own if beside is None else type(beside)(several)

    return forward
