"""Which positions of which sequences an edit touches, counted in texts and not in columns.

A batch may be padded on the left, a prompt may come in pieces, a model writes one token at a
time with a key-value cache or reads everything again without one: the positions of a text stay
the same. Position 0 is the first token of a sequence that is no padding.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae.base import require

Chosen = Bool[Tensor, "sequence position"]
Span = tuple[int, int | None]
"""A half-open range of positions. One below 0 is counted from the end; None is the end."""
EVERYWHERE: tuple[Span, ...] = ((0, None),)
Counted = int | Int[Tensor, "sequence #position"]
"""A position, or those of several texts."""
_BEYOND = 2**62
"""Later than any position."""


@dataclass(frozen=True)
class Window:
    """What one forward pass computes of a batch of sequences: columns `start` to `end`.

    While a model writes with a key-value cache, the first forward has the whole prompt, say
    columns 0 to 9, and the following ones 9 to 10, 10 to 11, ...
    """

    n_sequences: int
    start: int
    end: int
    prompt_end: int | None = None
    """Column at which what the model writes begins; `end` if left out, as in a single pass."""
    attended: Int[Tensor, "sequence column"] | None = None
    """0 where there is padding; None where there is none. It may end before `end`."""
    copies: int = 1
    """Sequences in a row that are of one text, as the beams of a search are."""
    _masks: "dict[Positions, Chosen]" = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def padding(self) -> Int[Tensor, "sequence 1"]:
        """Columns of padding before each text."""
        if self.attended is None:
            return torch.zeros(self.n_sequences, 1, dtype=torch.int64)
        return self.attended.bool().int().argmax(1, keepdim=True)

    @cached_property
    def positions(self) -> Int[Tensor, "sequence position"]:
        """The position in its text of each column; padding before a text is below 0."""
        return torch.arange(self.start, self.end) - self.padding

    @cached_property
    def prompt_lengths(self) -> Int[Tensor, "sequence 1"]:
        """Tokens of each prompt."""
        if self.attended is None:
            return self.prompt_columns - self.padding
        return self.attended[:, : self.prompt_columns].bool().sum(1, keepdim=True)

    @property
    def prompt_columns(self) -> int:
        """Columns of the prompt, padding before it included."""
        return self.end if self.prompt_end is None else self.prompt_end

    def mask(self, positions: "Positions") -> Chosen:
        """Return which columns are chosen; asked again, it is not computed again."""
        if positions not in self._masks:
            self._masks[positions] = positions.mask(self)
        return self._masks[positions]

    @cached_property
    def is_text(self) -> Chosen:
        """Which columns are no padding."""
        found = self.positions >= 0
        if self.attended is not None:
            own = self.attended[:, self.start : self.end].bool()
            found[:, : own.shape[1]] &= own
        return found


@runtime_checkable
class Positions(Protocol):
    """A choice of positions in sequences."""

    def mask(self, window: Window) -> Chosen:
        """Return which of the columns in `window` are chosen, in each sequence."""
        ...


@dataclass(frozen=True, slots=True)
class From:
    """All positions from one on."""

    first: int

    def mask(self, window: Window) -> Chosen:
        return window.is_text & (window.positions >= self.first)


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
    """The columns at which a mask is true.

    It says which tokens are text, for example, or where an edit is wanted in each sequence.
    """

    chosen: Chosen

    def mask(self, window: Window) -> Chosen:
        n_sequences, n_positions = self.chosen.shape
        require(
            n_sequences * window.copies == window.n_sequences and window.end <= n_positions,
            f"the mask of an edit has {n_sequences} sequences of {n_positions} positions, "
            f"but the model is run on {window.n_sequences // window.copies} sequences of "
            f"{window.end}; give a mask that covers them, including the tokens still to be "
            "written",
        )
        found = self.chosen[:, window.start : window.end]
        return found.repeat_interleave(window.copies, 0)


@dataclass(frozen=True, slots=True)
class Spans:
    """Parts of the prompt and of what is written after it, in some of the sequences."""

    prompt: tuple[Span, ...] = EVERYWHERE
    """Ranges of the prompt, from its first token."""
    generated: tuple[Span, ...] = EVERYWHERE
    """Ranges of the tokens that the model writes, from the first of them."""
    but: tuple[Span, ...] = ()
    """Ranges of whole sequences that are left out of both."""
    each: tuple[tuple[Span, ...], ...] | None = None
    """Ranges of each whole sequence, outside of which nothing is chosen."""

    def mask(self, window: Window) -> Chosen:
        if window.attended is None and window.end - window.start == 1:
            # A token at a time, as models write, is worth no tensors: each takes some
            # microseconds, and a forward pass of a small model few milliseconds.
            found = self._chosen(window.start, window.prompt_columns, window)
            chosen = torch.full((window.n_sequences, 1), bool(found))
        else:
            chosen = self._chosen(window.positions, window.prompt_lengths, window)
            chosen &= window.is_text
        if self.each is not None:
            chosen &= self._each_own(window)
        return chosen

    def _chosen(self, at: Counted, length: Counted, window: Window) -> Any:
        """Return which positions are chosen by their place in a text, whichever text it is."""
        after = at - length
        chosen = _within(at, self.prompt, length) & (after < 0)
        if window.prompt_end is not None and window.end > window.prompt_end:
            chosen |= _within(after, self.generated, None) & (after >= 0)
        return chosen & (_within(at, self.but, length) ^ True) if self.but else chosen

    def _each_own(self, window: Window) -> Chosen:
        each, n = self.each or (), window.n_sequences // window.copies
        require(
            len(each) == n,
            f"an edit is for a batch of {len(each)} sequences, but the model is run on {n}",
        )
        if {*each} <= {EVERYWHERE, ()}:
            own = torch.tensor([[bool(spans)] for spans in each])
            return own.repeat_interleave(window.copies, 0)
        rows = [i // window.copies for i in range(window.n_sequences)]
        at, length = window.positions, window.prompt_lengths
        return torch.cat(
            [_within(at[[i]], each[row], length[[i]]) for i, row in enumerate(rows)]
        )


@dataclass(frozen=True, slots=True)
class AnyOf:
    """All that one of several choices chooses."""

    choices: tuple[Positions, ...]

    def mask(self, window: Window) -> Chosen:
        first, *others = (window.mask(choice) for choice in self.choices)
        for other in others:
            first = first | other
        return first


def _within(at: Counted, spans: tuple[Span, ...], length: Counted | None) -> Any:
    """Return which positions are in one of the spans; those below 0 count from `length`."""
    found = at > _BEYOND
    for first, last in spans:
        inside = at >= _counted(first, length)
        found |= inside if last is None else inside & (at < _counted(last, length))
    return found


def _counted(end: int, length: Counted | None) -> Counted:
    """Return an end of a span, counted from the beginning."""
    if end >= 0 or length is None:
        return end
    return max(length + end, 0) if isinstance(length, int) else (length + end).clamp_min(0)
