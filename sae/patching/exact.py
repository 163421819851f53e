"""Exact patching: the model is run again for each cell, from the block that is patched on."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.edits import ALL, Edit, Put, edited
from sae.edits.copies import last_logits
from sae.models import Site
from sae.models.resume import first_block, resumed
from sae.patching.cells import Cell, Effects, normalised
from sae.patching.states import Places, States, Values


@dataclass(slots=True)
class Cost:
    """What exact patching has cost so far, and what it would have cost naively."""

    patched: int = 0
    """Patched prompts: a naive way runs the whole model on each."""
    forwards: float = 0.0
    """Whole forward passes of one prompt that were computed, in blocks."""


@dataclass(frozen=True, slots=True)
class Target:
    """A place that cells are patched at, with the activations that go in."""

    site: Site
    base: Float[Tensor, "prompt position d"]
    source: Float[Tensor, "prompt position d"]


@dataclass(frozen=True, slots=True)
class Exact:
    """Patches prompts of one length, some cells of some of them at a time."""

    places: Places
    batch_size: int
    done: Callable[[int], object] = lambda _: None
    """Is told how many patched prompts were run."""
    cost: Cost = field(default_factory=Cost)

    def effects(
        self, base: States, source: States, target: Target, cells: Sequence[Cell]
    ) -> Effects:
        """Return the normalised effect of each cell at one place, for each prompt.

        Where both runs hold the same activations nothing is run: the effect is 0.
        """
        n, heads = len(base.tokens), self.places.n_heads
        metric = base.metric[:, None].repeat(1, len(cells))
        rows = [
            (i, j)
            for i in range(n)
            for j, cell in enumerate(cells)
            if not self._is_same(target, i, cell)
        ]
        self.cost.patched += n * len(cells)
        for some in batches(rows, self.batch_size):
            which = torch.tensor([i for i, _ in some], device=base.tokens.device)
            values = torch.stack(
                [cells[j].into(target.base[i], target.source[i], heads) for i, j in some]
            )
            found = self.metric(base, target.site, which, values)
            metric[which, [j for _, j in some]] = found
        return normalised(metric.double().cpu(), base.metric.cpu(), source.metric.cpu())

    def metric(
        self, base: States, site: Site, which: Int[Tensor, " row"], values: Values
    ) -> Float[Tensor, " row"]:
        """Return the difference of logits of some prompts, with `values` at a site."""
        module = self.places.model.module
        block = first_block(module, site)
        with (
            torch.inference_mode(),
            resumed(module, block, base.streams[block][which]),
            edited(module, [Edit(site, Put(values), ALL)]),
        ):
            logits = last_logits(module, base.tokens[which], 1)
        self.count(len(which), block)
        return base.answers.of(which).difference(logits)

    def count(self, n: int, block: int, end: int | None = None) -> None:
        """Note that `n` prompts were run from a block on, up to the last one or to `end`."""
        layers = self.places.n_layers
        self.cost.forwards += n * ((layers if end is None else end) - block) / layers
        self.done(n)

    def _is_same(self, target: Target, i: int, cell: Cell) -> bool:
        """Return whether a patch puts in what is there already."""
        if cell.position is None:
            return torch.equal(target.base[i], target.source[i])
        return torch.equal(target.base[i, cell.position], target.source[i, cell.position])


def batches(rows: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    """Yield the rows, at most `size` at a time."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def by_place(cells: Sequence[Cell]) -> Mapping[tuple[str, int], list[int]]:
    """Return the numbers of cells of each kind and block."""
    found: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i, cell in enumerate(cells):
        if cell.layer is not None:
            found[cell.site, cell.layer].append(i)
    return found
