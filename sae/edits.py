"""Interventions as data: what changes in a forward pass, where, and at which positions.

`edited` is the only way to change a forward pass. Another kind of change is another class with
a method `apply`; another choice of positions one with a method `mask`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae.base import UserError, require
from sae.dictionary import Normalisation
from sae.models import Site
from sae.models.calls import hooked, one_vector_a_token

Read = Float[Tensor, "row d_in"]
"""Activations at the source of an edit."""
Written = Float[Tensor, "row d_out"]
"""Activations at its site."""
Chosen = Bool[Tensor, "sequence position"]
Reconstruction = Callable[[Tensor], Tensor]
"""A dictionary: activations that it writes from those that it reads."""


@dataclass(frozen=True, slots=True)
class Window:
    """What one forward pass computes of a batch of sequences: positions `start` to `end`.

    While a model writes with a key-value cache, the first forward has the whole prompt, say
    positions 0 to 9, and the following ones 9 to 10, 10 to 11, ...
    """

    n_sequences: int
    start: int
    end: int


@runtime_checkable
class Positions(Protocol):
    """A choice of positions in sequences, counted from their start."""

    def mask(self, window: Window) -> Chosen:
        """Return which of the positions in `window` are chosen, in each sequence."""
        ...


@dataclass(frozen=True, slots=True)
class From:
    """All positions from one on."""

    first: int

    def mask(self, window: Window) -> Chosen:
        at = torch.arange(window.start, window.end)
        return (at >= self.first).expand(window.n_sequences, -1)


ALL = From(0)
ALL_BUT_FIRST = From(1)
"""The first position holds the token that begins a text: no feature is trained on it, and
models use it as a sink for attention."""


@dataclass(frozen=True, slots=True)
class Last:
    """The last position of each forward pass, from which the next token is predicted."""

    def mask(self, window: Window) -> Chosen:
        at = torch.arange(window.start, window.end)
        return (at == window.end - 1).expand(window.n_sequences, -1)


@dataclass(frozen=True, slots=True)
class Where:
    """The positions at which a mask is true.

    It says which tokens are text, for example, or where the text begins in sequences that are
    padded on the left.
    """

    chosen: Chosen

    def mask(self, window: Window) -> Chosen:
        n_sequences, n_positions = self.chosen.shape
        require(
            n_sequences == window.n_sequences and window.end <= n_positions,
            f"the mask of an edit has {n_sequences} sequences of {n_positions} positions, but "
            f"the model is run on {window.n_sequences} of {window.end}; give one that covers "
            "them, tokens still to be written included",
        )
        return self.chosen[:, window.start : window.end]


@dataclass(frozen=True, slots=True)
class Rows:
    """Where rows of activations stand: each one's sequence in the batch, and position there."""

    sequence: Int[Tensor, " row"]
    position: Int[Tensor, " row"]
    n_sequences: int
    """Sequences in the whole batch."""

    def own(self, values: Float[Tensor, "*place d"]) -> Float[Tensor, "*row d"]:
        """Return each row's part of values (d,), (sequence, d) or (sequence, position, d)."""
        if values.dim() == 1:
            return values
        require(
            len(values) == self.n_sequences,
            f"an edit has values for {len(values)} sequences, but the model is run on "
            f"{self.n_sequences}",
        )
        if values.dim() == 2:
            return values.index_select(0, self.sequence)
        return values[self.sequence, self.position]


@runtime_checkable
class Change(Protocol):
    """What becomes of the rows of activations that an edit touches."""

    def apply(self, x: Read, y: Written, rows: Rows) -> Written:
        """Return new activations in the place of `y`; `x` is `y` without a source."""
        ...


@dataclass(frozen=True, slots=True)
class Add:
    """A vector is added: to all activations the same, or to those of each sequence its own."""

    vectors: Float[Tensor, "*place d_out"]
    normalisation: Normalisation | None = None
    """Of a dictionary that reads each row by its own length: the vector is as long in its unit,
    so that it is multiplied by the length of the row that it is added to."""

    def apply(self, x: Read, y: Written, rows: Rows) -> Written:
        vectors = self.vectors.to(y)
        # Adding minus zero changes nothing, not even the sign of a zero.
        own = rows.own(vectors.masked_fill(vectors == 0, -0.0))
        return y + (own if self.normalisation is None else own * self.normalisation.lengths(y))


@dataclass(frozen=True, slots=True)
class Put:
    """A value takes the activations' place: one for all, or each sequence and position its own.

    Zeros or a mean ablate; activations of another forward pass patch.
    """

    value: Float[Tensor, "*place d_out"]

    def apply(self, x: Read, y: Written, rows: Rows) -> Written:
        return rows.own(self.value.to(y)).expand_as(y)


@dataclass(frozen=True, slots=True)
class Splice:
    """What a dictionary makes of the activations at the source takes the activations' place."""

    dictionary: Reconstruction

    def apply(self, x: Read, y: Written, rows: Rows) -> Written:
        return self.dictionary(x)


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of activations at one site of a model.

    `Edit(site, Add(direction), ALL_BUT_FIRST)` steers, `Edit(site, Put(mean), ALL)` ablates,
    and `Edit(site, Splice(dictionary), Where(is_text))` shows the rest of the model what a
    dictionary reconstructs.
    """

    site: Site
    """Where activations change."""
    change: Change
    positions: Positions
    """Where in the sequences they change; elsewhere they stay, to the bit."""
    source: Site | None = None
    """What the change reads, in the same forward pass; the site itself if left out."""


@contextmanager
def edited(module: nn.Module, edits: Sequence[Edit]) -> Iterator[None]:
    """Apply `edits` in every forward pass of `module` inside this context.

    At one site each edit is given what the edits before it in the list left. Positions are
    counted from the start of the sequences, also while a model writes with a key-value cache;
    what such a cache held before keeps the activations that it was made with.

    Raises:
        UserError: in a forward pass, if an edit's source comes after its site in the model, or
            its site does not give one vector a token.
    """
    forward = _Forward(module)
    with ExitStack() as hooks:
        begin = module.register_forward_pre_hook(forward.begin, with_kwargs=True)
        hooks.callback(begin.remove)
        for edit in edits:
            hooks.enter_context(_edited(module, edit, forward))
        yield


class _Forward:
    """Where in the sequences the forward pass that is under way begins."""

    def __init__(self, module: nn.Module) -> None:
        self.arguments = list(signature(module.forward).parameters)
        self.start = self.end = 0
        self.state: object = None

    def begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(self.arguments, args, strict=False)) | kwargs
        cache, state = given.get("past_key_values"), given.get("cache_params")
        if cache is not None:
            self.start = int(cache.get_seq_length())
        else:
            # A recurrent model's state does not say how many tokens went into it.
            self.start = self.end if state is not None and state is self.state else 0
        self.state = state

    def changed(self, edit: Edit, x: Any, found: object) -> Tensor | None:
        """Return the activations after an edit, or None if they all stay."""
        y = one_vector_a_token(edit.site.hook_name, found)
        n_sequences, n_positions, _ = y.shape
        self.end = self.start + n_positions
        window = Window(n_sequences, self.start, self.end)
        # Only the rows that change are computed, out of the batch laid end to end.
        at = edit.positions.mask(window).flatten().nonzero()[:, 0].to(y.device)
        if not len(at):
            return None
        rows = Rows(at // n_positions, self.start + at % n_positions, n_sequences)
        flat = y.flatten(0, 1)
        y_rows = flat.index_select(0, at)
        x_rows = y_rows if x is y else x.flatten(0, 1).index_select(0, at)
        new = edit.change.apply(x_rows, y_rows, rows)
        return flat.index_copy(0, at, new.to(y.dtype)).view_as(y)


@contextmanager
def _edited(module: nn.Module, edit: Edit, forward: _Forward) -> Iterator[None]:
    """Apply one edit."""
    source, held = edit.source or edit.site, list[Tensor]()

    def read(x: Any) -> None:
        held[:] = [x]

    def change(y: Any) -> Tensor | None:
        if not held:
            raise UserError(
                f"hook_name_out={edit.site.hook_name} comes before "
                f"hook_name={source.hook_name} in the model; a transcoder goes from a place to "
                "the same or a later one"
            )
        # Taken away, so that no forward is ever edited by what another one held.
        return forward.changed(edit, held.pop(), y)

    # The reader first: hooks of one module are called in the order that they came in.
    with hooked(module, source, read), _changed(module, edit.site, change):
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
