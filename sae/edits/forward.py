"""Changing what a model computes: the one context manager that all parts of the project use."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial, wraps
from inspect import signature
from typing import Any

from torch import Tensor, nn

from sae.base import UserError, require
from sae.edits.changes import Change, Rows
from sae.edits.codes import Gate
from sae.edits.positions import Positions, Window
from sae.models import Site
from sae.models.calls import hooked, one_vector_a_token

_STATES = ("cache_params", "state")
"""Names of what recurrent models take and return in a key-value cache's place."""


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of activations at one site of a model.

    `Edit(site, Add(direction), ALL_BUT_FIRST)` steers, `Edit(site, Put(mean), ALL)` ablates,
    and `Edit(site, Splice(dictionary), Where(is_text))` shows the rest of the model what a
    dictionary reconstructs.
    """

    site: Site
    """Site at which activations change."""
    change: Change
    positions: Positions
    """Positions of the sequences at which activations change; at all others they stay the same
    to the bit."""
    source: Site | None = None
    """What the change reads, in the same forward pass; the site itself if left out."""
    gate: Gate | None = None
    """What has to be active at a position for the edit to be made there."""


@contextmanager
def edited(module: nn.Module, edits: Sequence[Edit]) -> Iterator[None]:
    """Apply `edits` in every forward pass of `module` inside this context.

    At one site each edit is given what the edits before it in the list left. Positions are
    counted from the start of each text, whatever the padding before it, also while a model
    writes with a key-value cache; what such a cache held before keeps the activations that it
    was made with. What `module.generate` is given is the prompt, and so is what any other
    forward pass reads without a cache; all that follows is generated.

    Raises:
        UserError: in a forward pass, if an edit's source comes after its site in the model, or
            its site does not give one vector a token.
    """
    forward = _Forward(module)
    with ExitStack() as hooks:
        begin = module.register_forward_pre_hook(forward.begin, with_kwargs=True)
        hooks.callback(begin.remove)
        hooks.callback(module.register_forward_hook(forward.finish).remove)
        hooks.enter_context(_watched(module, forward))
        for edit in edits:
            hooks.enter_context(_edited(module, edit, forward))
        yield


@contextmanager
def _watched(module: nn.Module, forward: "_Forward") -> Iterator[None]:
    """Let `forward` know what `module.generate` is given, for nothing else tells it.

    Without a key-value cache, a forward pass that writes looks like one that reads a prompt.
    """
    generate = getattr(module, "generate", None)
    if generate is None:
        yield
        return
    before = vars(module).get("generate")

    @wraps(generate)
    def watched(*args: Any, **kwargs: Any) -> Any:
        inputs = kwargs.get("inputs", kwargs.get("input_ids", args[0] if args else None))
        forward.prompt = kwargs.get("inputs_embeds") if inputs is None else inputs
        forward.padded = kwargs.get("attention_mask")
        forward.writing, forward.end = True, 0
        try:
            return generate(*args, **kwargs)
        finally:
            forward.writing, forward.prompt, forward.padded = False, None, None

    vars(module)["generate"] = watched
    try:
        yield
    finally:
        if before is None:
            del vars(module)["generate"]
        else:
            vars(module)["generate"] = before


class _Forward:
    """Where in the sequences the forward pass that is under way begins."""

    def __init__(self, module: nn.Module) -> None:
        self.arguments = list(signature(module.forward).parameters)
        self.start: int | None = None
        """Column that it begins with; None as long as only what it computes can tell."""
        self.end = 0
        self.prompt_end: int | None = None
        self.writing = False
        """Whether `generate` runs."""
        self.prompt: Tensor | None = None
        """What `generate` was given, while it runs."""
        self.padded: Tensor | None = None
        """The attention mask that came with it."""
        self.state: object = None
        """What a recurrent model returned last, to go on from."""
        self.mask: Tensor | None = None
        self.window: Window | None = None

    def begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(self.arguments, args, strict=False)) | kwargs
        cache = given.get("past_key_values")
        self.start = None if cache is None else int(cache.get_seq_length())
        state = next((given[name] for name in _STATES if given.get(name) is not None), None)
        if cache is None and not self.writing:
            # A recurrent model's state does not say how many tokens went into it.
            require(
                state is None or state is self.state,
                "the model was given a cached state from outside this context, so the "
                "positions of the following tokens are not known; let it read the whole "
                "text inside the context",
            )
            self.start = 0 if state is None else self.end
        mask = given.get("attention_mask")
        # Some caches come with a mask of four dimensions, which does not say what is padding.
        self.mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else self.padded
        self.window = None

    def finish(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        found = (getattr(output, name, None) for name in _STATES)
        self.state = next((state for state in found if state is not None), None)

    def seen(self, y: Tensor) -> Window:
        """Return what this forward pass computes, given the activations at a site."""
        if self.window is None:
            n_sequences, n_columns, _ = y.shape
            if self.start is None:
                # While it writes, all that there is has a token more than before; fewer tokens
                # are what follows a state.
                self.start = self.end if n_columns <= self.end else 0
            self.end, copies = self.start + n_columns, 1
            if self.prompt is not None:
                self.prompt_end, copies = self.prompt.shape[1], n_sequences // len(self.prompt)
            elif self.start == 0 or self.prompt_end is None:
                self.prompt_end = self.start or self.end
            mask = self.mask
            if mask is not None:
                # A mask without padding says nothing.
                mask = None if bool(mask.all()) else mask.long().cpu()
            if mask is not None and len(mask) < n_sequences:
                mask = mask.repeat_interleave(n_sequences // len(mask), 0)
            self.window = Window(
                n_sequences, self.start, self.end, self.prompt_end, mask, copies
            )
        return self.window

    def changed(self, edit: Edit, x: Any, gating: Any, found: object) -> Tensor | None:
        """Return the activations after an edit, or None if they all stay."""
        y = one_vector_a_token(edit.site.hook_name, found)
        window = self.seen(y)
        flat = y.flatten(0, 1)
        # Only the rows that change are computed, out of the batch laid end to end.
        at = window.mask(edit.positions).flatten().nonzero()[:, 0].to(y.device)
        if len(at) and edit.gate is not None:
            at = at[edit.gate.is_open(gating.flatten(0, 1).index_select(0, at))]
        if not len(at):
            return None
        is_all = len(at) == len(flat)
        y_rows = flat if is_all else flat.index_select(0, at)
        x_rows = y_rows
        if x is not y:
            x_rows = x.flatten(0, 1) if is_all else x.flatten(0, 1).index_select(0, at)
        new = edit.change.apply(x_rows, y_rows, Rows(at, window)).to(y.dtype)
        return (new if is_all else flat.index_copy(0, at, new)).reshape(y.shape)


@contextmanager
def _edited(module: nn.Module, edit: Edit, forward: _Forward) -> Iterator[None]:
    """Apply one edit."""
    source = edit.source or edit.site
    read_at = [source] if edit.gate is None else [source, edit.gate.site]
    held: dict[int, Tensor] = {}

    def change(y: Any) -> Tensor | None:
        for i, site in enumerate(read_at):
            if i not in held:
                raise UserError(
                    f"an edit of {edit.site.hook_name} reads {site.hook_name}, which the "
                    "model computes later; give the same place or an earlier one"
                )
        # Taken away, so that no forward is ever edited by what another one held.
        return forward.changed(edit, held.pop(0), held.pop(1, None), y)

    with ExitStack() as hooks:
        # The readers first: hooks of one module are called in the order that they came in.
        for i, site in enumerate(read_at):
            hooks.enter_context(hooked(module, site, partial(held.__setitem__, i)))
        hooks.enter_context(_changed(module, edit.site, change))
        yield


@contextmanager
def _changed(
    module: nn.Module, site: Site, change: Callable[[Tensor], Tensor | None]
) -> Iterator[None]:
    """Change what stands at a site, for everything that reads it.

    In the middle of a residual stream the norm before the MLP gets the new activations, but the
    block has put the old ones aside to add the MLP's output to. So the difference is added to
    what the block returns.
    """
    if site.copied_in is None:
        with hooked(module, site, change):
            yield
        return
    differences: list[Tensor] = []

    def before_norm(y: Any) -> Tensor | None:
        new = change(y)
        differences[:] = [] if new is None else [new - y]
        return new

    def after_block(output: Tensor) -> Tensor | None:
        return output + differences.pop() if differences else None

    block = replace(site, module=site.copied_in, side="output")
    # Before all other hooks on the block's output, as the middle comes before it.
    with hooked(module, site, before_norm), hooked(module, block, after_block, first=True):
        yield
