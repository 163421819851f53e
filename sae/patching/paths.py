"""Path patching: what one part of a model tells another directly, the rest held still.

Wang et al. 2022, "Interpretability in the wild" (arXiv 2211.00593), in three passes. The base
run and the source run are known. In the second, the sender gives what it gives in the source
run, and all attention and MLPs between (or attention alone) give what they give in the base
run, so that the receiver hears of the sender through the residual stream alone; what it then
gives is kept. In the third, the base run goes on with that in the receiver's place.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.edits import ALL, Edit, Put, edited
from sae.edits.copies import last_logits
from sae.models import read_activations
from sae.models.resume import resumed
from sae.patching.cells import Cell, Effects, normalised
from sae.patching.exact import Exact, batches
from sae.patching.states import Places, States


@dataclass(frozen=True, slots=True)
class Receiver:
    """What is to hear of a sender."""

    name: str
    kind: str
    """`logits`, `head`, `attention` or `mlp`."""
    layer: int
    """Its block; that behind the last one for logits."""
    head: int | None = None

    @classmethod
    def of(cls, name: str, places: Places) -> "Receiver | str":
        """Return the receiver of a name, or a sentence that says why there is none."""
        if name == "logits":
            return cls(name, "logits", places.n_layers)
        numbers = [int(number) for number in re.findall(r"\d+", name)]
        kind = "head" if name.startswith("L") else name.rstrip("0123456789")
        if numbers[0] >= places.n_layers:
            return (
                f"receivers={name} is out of range, this model has layers 0 to "
                f"{places.n_layers - 1}"
            )
        if kind == "head" and numbers[1] >= places.n_heads:
            return (
                f"receivers={name} is out of range, a layer has heads 0 to {places.n_heads - 1}"
            )
        if kind in ("head", "attention") and numbers[0] == 0:
            return f"receivers={name} comes before all heads and MLPs, so none can reach it"
        return cls(name, kind, numbers[0], numbers[1] if kind == "head" else None)


def senders(places: Places, receiver: Receiver) -> list[Cell]:
    """Return the heads and MLPs that come before a receiver."""
    found = []
    for layer in range(min(receiver.layer + 1, places.n_layers)):
        if layer < receiver.layer or receiver.kind == "mlp":
            found += [
                Cell("path", layer, head=head, receiver=receiver.name)
                for head in range(places.n_heads)
            ]
        if layer < receiver.layer:
            found.append(Cell("path", layer, receiver=receiver.name))
    return found


def path_effects(
    exact: Exact,
    states: tuple[States, States],
    receiver: Receiver,
    cells: Sequence[Cell],
    frozen: str,
) -> Effects:
    """Return the normalised effect of each sender on the metric through one receiver.

    Args:
        exact: runs the model.
        states: of the run that is patched, and of the run whose activations go in.
        receiver: what hears of the senders.
        cells: the senders, see `senders`.
        frozen: what does not react in between: `all`, `attention` or `nothing`.
    """
    base, source = states
    n = len(base.tokens)
    metric = base.metric[:, None].repeat(1, len(cells))
    exact.cost.patched += n * len(cells) * (1 if receiver.kind == "logits" else 2)
    # Heads and MLPs of one block by themselves, for they hold different parts still.
    groups = {(cell.layer or 0, cell.head is None) for cell in cells}
    for layer, is_mlp in sorted(groups):
        own = [j for j, c in enumerate(cells) if (c.layer, c.head is None) == (layer, is_mlp)]
        path = _Path(exact, base, source, receiver, layer, "mlp" if is_mlp else "head", frozen)
        for some in batches([(i, j) for i in range(n) for j in own], exact.batch_size):
            which = torch.tensor([i for i, _ in some], device=base.tokens.device)
            found = path.metric([(i, cells[j]) for i, j in some], which)
            metric[which, [j for _, j in some]] = found
    return normalised(metric.double().cpu(), base.metric.cpu(), source.metric.cpu())


@dataclass(frozen=True, slots=True)
class _Path:
    """Paths from senders in one block to a receiver."""

    exact: Exact
    base: States
    source: States
    receiver: Receiver
    layer: int
    kind: str
    """Kind of the senders: `head` or `mlp`."""
    frozen: str

    def metric(
        self, sent: Sequence[tuple[int, Cell]], which: Int[Tensor, " row"]
    ) -> Float[Tensor, " row"]:
        """Return the metric of each sender's patch."""
        exact, receiver, base = self.exact, self.receiver, self.base
        places, tokens = exact.places, base.tokens[which]
        module = places.model.module
        start, edits = self.layer, [self._sent(sent), *self._held(which)]
        stream = base.streams[start][which]
        if self.frozen == "all" and receiver.layer > start:
            # Nothing in between reacts: the stream that arrives is that of the base run, with
            # what the senders' block adds to it.
            post = places.site("residual", start)
            with resumed(module, start, stream), edited(module, edits):
                added = read_activations(module, [post], tokens)[post.hook_name]
            exact.count(len(which), start, start + 1)
            added = added - base.streams[start + 1][which]
            start = receiver.layer
            stream, edits = base.streams[start][which] + added, [*self._held(which, start)]
        resuming = resumed(module, start, stream)
        if receiver.kind == "logits":
            with torch.inference_mode(), resuming, edited(module, edits):
                logits = last_logits(module, tokens, 1)
            exact.count(len(which), start)
            return base.answers.of(which).difference(logits)
        site = places.site(receiver.kind, receiver.layer)
        with resuming, edited(module, edits):
            heard = read_activations(module, [site], tokens)[site.hook_name]
        exact.count(len(which), start, receiver.layer + 1)
        if receiver.head is not None:
            own = Cell("head", receiver.layer, head=receiver.head)
            both = zip(base.at[site.hook_name][which], heard, strict=True)
            heard = torch.stack([own.into(b, h, places.n_heads) for b, h in both])
        return exact.metric(base, site, which, heard)

    def _sent(self, sent: Sequence[tuple[int, Cell]]) -> Edit:
        """Return the patch of the senders."""
        site = self.exact.places.site(self.kind, self.layer)
        base, source = self.base.at[site.hook_name], self.source.at[site.hook_name]
        n_heads = self.exact.places.n_heads
        values = [cell.into(base[i], source[i], n_heads) for i, cell in sent]
        return Edit(site, Put(torch.stack(values)), ALL)

    def _held(self, which: Int[Tensor, " row"], first: int = 0) -> Iterator[Edit]:
        """Yield what gives the same as in the base run: the parts behind the senders.

        Args:
            which: prompts of the rows.
            first: block from which on the model is run; the senders' if left out.
        """
        places = self.exact.places
        kinds = {"all": ("attention", "mlp"), "attention": ("attention",), "nothing": ()}
        own = "attention" if self.receiver.kind == "head" else self.receiver.kind
        end = min(self.receiver.layer + 1, places.n_layers)
        for layer in range(max(self.layer, first), end):
            for kind in kinds[self.frozen]:
                before = layer == self.layer and (kind == "attention" or self.kind == "mlp")
                if before or (layer, kind) == (self.receiver.layer, own):
                    continue
                site = places.site(kind, layer)
                yield Edit(site, Put(self.base.at[site.hook_name][which]), ALL)
