"""All that is measured on one group of pairs, whose positions mean the same."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.models import Site
from sae.patching.attribution import gradients
from sae.patching.cells import Cell, Effects, nothing
from sae.patching.config import PatchConfig
from sae.patching.exact import Cost, Exact, Target, by_place
from sae.patching.features import PARTS, PlacedDictionary, Seen, part_cells
from sae.patching.pairs import LeftOut, Pair
from sae.patching.paths import Receiver, path_effects, senders
from sae.patching.states import Places, States, both_states

LEAST_DIFFERENCE = 0.5
"""Nats by which the metric of both prompts has to differ, so that a share of it says much."""
ALONG_POSITIONS = ("residual", "attention", "mlp")


@dataclass(frozen=True, slots=True)
class Spent:
    """What one kind of measurement has cost."""

    what: Mapping[str, str]
    """Site or method, and patch."""
    seconds: float
    cost: Cost | None = None


@dataclass(frozen=True, slots=True)
class Control:
    """The strongest cell of a kind, beside the same cell with another pair's corrupt prompt.

    That exchanges one prompt for another in which the answer is decided the same way: what it
    does is what exchanging activations does by itself.
    """

    cell: Cell
    effect: float
    control: float | None
    """None where there is no other pair with another answer."""


@dataclass(slots=True)
class Found:
    """Effects of one group: of each cell, for each pair."""

    pairs: list[Pair]
    n_exact: int
    """The first pairs are patched exactly."""
    cells: list[Cell]
    clean: Float[Tensor, " pair"]
    corrupt: Float[Tensor, " pair"]
    effects: dict[tuple[str, str], Effects] = field(default_factory=dict)
    """By method and patch; not a number where a cell was not measured."""
    controls: list[Control] = field(default_factory=list)
    directions: dict[str, Float[Tensor, "layer position d"]] = field(default_factory=dict)
    """Mean of clean less corrupt activations, by kind; of a dictionary's part of one block."""
    code_changes: dict[int, float] = field(default_factory=dict)
    """Largest mean change of the code of each single feature, clean minus corrupt."""
    spent: list[Spent] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Study:
    """Measures groups of pairs."""

    config: PatchConfig
    places: Places
    dictionary: PlacedDictionary | None
    receivers: tuple[Receiver, ...]
    done: Callable[[int], object] = lambda _: None

    def of(self, pairs: Sequence[Pair], n_exact: int) -> tuple[Found | None, list[LeftOut]]:
        """Measure a group; pairs whose prompts the model answers alike are left out."""
        clean, corrupt = both_states(self.places, pairs, [*self._sites()])
        kept, left_out = _kept(pairs, clean, corrupt)
        if not len(kept):
            return None, left_out
        clean, corrupt = clean.of(kept), corrupt.of(kept)
        cells = self._cells(clean.tokens.shape[1])
        own = [pairs[int(i)] for i in kept]
        metrics = clean.metric.cpu(), corrupt.metric.cpu()
        found = Found(own, min(n_exact, len(own)), cells, *metrics)
        group = _Group(self, clean, corrupt, found)
        group.measure()
        return found, left_out

    def _sites(self) -> Iterator[Site]:
        kinds = dict.fromkeys(self.config.sites)
        if self.receivers:
            kinds |= dict.fromkeys(("head", "attention", "mlp"))
        for kind in kinds:
            yield from (self.places.site(kind, i) for i in range(self.places.n_layers))
        if self.dictionary is not None:
            yield from self.dictionary.sites

    def _cells(self, n_positions: int) -> list[Cell]:
        places, found = self.places, list[Cell]()
        for kind in self.config.sites:
            for layer in range(places.n_layers):
                if kind == "head":
                    found += [Cell(kind, layer, head=head) for head in range(places.n_heads)]
                else:
                    found += [Cell(kind, layer, position=p) for p in range(n_positions)]
        if self.dictionary is not None:
            found += part_cells(self.dictionary.layer, n_positions)
        for receiver in self.receivers:
            found += senders(places, receiver)
        return found


def _kept(
    pairs: Sequence[Pair], clean: States, corrupt: States
) -> tuple[Int[Tensor, " pair"], list[LeftOut]]:
    """Return which pairs the model tells apart, and why the others are left out."""
    apart = (clean.metric - corrupt.metric).abs() >= LEAST_DIFFERENCE
    left_out = [
        LeftOut(
            pair.text,
            f"the difference of logits is {float(clean.metric[i]):.2f} after the clean prompt "
            f"and {float(corrupt.metric[i]):.2f} after the corrupt one, and shares of less "
            f"than {LEAST_DIFFERENCE} nats say little; take prompts that it tells apart",
        )
        for i, pair in enumerate(pairs)
        if not apart[i]
    ]
    return apart.nonzero()[:, 0], left_out


@dataclass(frozen=True, slots=True)
class _Group:
    """A group with its states."""

    study: Study
    clean: States
    corrupt: States
    found: Found

    def measure(self) -> None:
        """Measure all that is asked for."""
        config, dictionary, found = self.study.config, self.study.dictionary, self.found
        seen = (
            None
            if dictionary is None
            else (dictionary.seen(self.clean), dictionary.seen(self.corrupt))
        )
        if dictionary is not None and seen is not None and config.n_features:
            found.cells += self._chosen_features(dictionary, *seen)
        for patch in config.patches:
            for method in config.methods:
                if method != "exact":
                    self._attribute(method, patch, seen)
            if "exact" in config.methods and found.n_exact:
                self._patch(patch, seen)
        if ("exact", "denoising") in found.effects:
            self._control()
        found.directions.update(self._directions(seen))

    def _both(self, patch: str) -> tuple[States, States]:
        """Return the run that is patched, and the one whose activations go in."""
        clean, corrupt = self.clean, self.corrupt
        return (corrupt, clean) if patch == "denoising" else (clean, corrupt)

    def _chosen_features(
        self, dictionary: PlacedDictionary, clean: Seen, corrupt: Seen
    ) -> list[Cell]:
        """Return cells of the features that matter most, by gradients of the corrupt run."""
        config, found = self.study.config, self.found
        methods = [m for m in ("relp", "ig", "plain") if m in config.methods] or ["plain"]
        slopes = gradients(
            self.study.places,
            self.corrupt,
            self.clean,
            [dictionary.written],
            methods[0],
            config,
        )
        shares = dictionary.feature_shares(corrupt, clean, slopes[dictionary.written.hook_name])
        mean = (shares / (self.clean.metric - self.corrupt.metric)[:, None]).mean(0)
        n = min(config.n_features, int((mean != 0).sum()))
        chosen = mean.abs().topk(n).indices.tolist()
        changes = (clean.codes - corrupt.codes)[..., chosen].mean(0)
        at = changes.abs().argmax(0, keepdim=True)
        values = changes.gather(0, at)[0].tolist()
        found.code_changes.update(zip(chosen, values, strict=True))
        return [Cell("feature", dictionary.layer, feature=feature) for feature in chosen]

    def _targets(
        self, patch: str, seen: tuple[Seen, Seen] | None
    ) -> Iterator[tuple[list[int], Target]]:
        """Yield each place with the numbers of its cells, and what goes in there."""
        base, source = self._both(patch)
        dictionary, cells, places = self.study.dictionary, self.found.cells, self.study.places
        for (kind, layer), own in by_place(cells).items():
            if kind in self.study.config.sites:
                site = places.site(kind, layer)
                name = site.hook_name
                yield own, Target(site, base.at[name], source.at[name])
            elif dictionary is not None and seen is not None and kind != "path":
                of_clean, of_corrupt = seen
                both = (
                    (of_corrupt, of_clean) if patch == "denoising" else (of_clean, of_corrupt)
                )
                if kind in PARTS:
                    yield own, dictionary.target(kind, *both)
                    continue
                for i in own:
                    yield [i], dictionary.feature_target(cells[i].feature or 0, *both)

    def _attribute(self, method: str, patch: str, seen: tuple[Seen, Seen] | None) -> None:
        began = perf_counter()
        study, found, (base, source) = self.study, self.found, self._both(patch)
        targets = [*self._targets(patch, seen)]
        if not targets:
            # Paths alone, which no gradient estimates.
            return
        sites = {target.site.hook_name: target.site for _, target in targets}
        asked = study.config
        slopes = gradients(study.places, base, source, [*sites.values()], method, asked)
        effects, norms = (nothing(len(found.pairs), found.cells) for _ in range(2))
        for own, target in targets:
            change = (target.source - target.base).float()
            shares = change * slopes[target.site.hook_name].float()
            for i in own:
                n_heads = study.places.n_heads
                share = found.cells[i].share(shares, n_heads) / (source.metric - base.metric)
                effects[:, i] = share.double().cpu()
                squares = found.cells[i].share(change.square(), n_heads)
                norms[:, i] = squares.sqrt().double().cpu()
        found.effects[method, patch] = effects
        # The control of them all: how much is put in, whatever it does.
        found.effects["norm", patch] = norms
        spent = perf_counter() - began
        found.spent.append(Spent({"method": method, "patch": patch}, spent))

    def _patch(self, patch: str, seen: tuple[Seen, Seen] | None) -> None:
        study, found, n = self.study, self.found, self.found.n_exact
        first = torch.arange(n, device=self.clean.tokens.device)
        base, source = (states.of(first) for states in self._both(patch))
        effects = nothing(len(found.pairs), found.cells)
        began: dict[str, float] = {}
        costs: dict[str, Exact] = {}
        for own, target in self._targets(patch, seen):
            cells = [found.cells[i] for i in own]
            exact = costs.setdefault(cells[0].site, self._exact())
            start = perf_counter()
            some = Target(target.site, target.base[:n], target.source[:n])
            effects[:n, own] = exact.effects(base, source, some, cells)
            began[cells[0].site] = began.get(cells[0].site, 0) + perf_counter() - start
        for receiver in study.receivers:
            own = [i for i, c in enumerate(found.cells) if c.receiver == receiver.name]
            start, exact = perf_counter(), costs.setdefault("path", self._exact())
            cells = [found.cells[i] for i in own]
            frozen = study.config.frozen
            effects[:n, own] = path_effects(exact, (base, source), receiver, cells, frozen)
            began["path"] = began.get("path", 0) + perf_counter() - start
        found.effects["exact", patch] = effects
        found.spent += [
            Spent({"site": site, "patch": patch}, began[site], exact.cost)
            for site, exact in costs.items()
        ]

    def _exact(self) -> Exact:
        return Exact(self.study.places, self.study.config.batch_size, self.study.done)

    def _control(self) -> None:
        """Patch the strongest cell of each kind from the corrupt prompt of another pair."""
        study, found, n = self.study, self.found, self.found.n_exact
        first = torch.arange(n, device=self.clean.tokens.device)
        base, source = self.corrupt.of(first), self.clean.of(first)
        effects = found.effects["exact", "denoising"][:n]
        others = [_other(i, found.pairs) for i in range(n)]
        for kind in study.config.sites:
            own = [i for i, cell in enumerate(found.cells) if cell.site == kind]
            best = own[int(effects[:, own].mean(0).abs().argmax())]
            cell, control = found.cells[best], None
            if None not in others:
                site = study.places.site(kind, cell.layer or 0)
                name = site.hook_name
                donor = self.corrupt.at[name][[i or 0 for i in others]]
                target = Target(site, base.at[name], donor)
                made = Exact(study.places, study.config.batch_size)
                control = float(made.effects(base, source, target, [cell]).mean())
            found.controls.append(Control(cell, float(effects[:, best].mean()), control))

    def _directions(
        self, seen: tuple[Seen, Seen] | None
    ) -> Iterator[tuple[str, Float[Tensor, "layer position d"]]]:
        """Yield the mean of clean less corrupt activations, by kind of place."""
        places, dictionary = self.study.places, self.study.dictionary
        for kind in ALONG_POSITIONS:
            if kind in self.study.config.sites:
                names = [places.site(kind, i).hook_name for i in range(places.n_layers)]
                means = [(self.clean.at[n] - self.corrupt.at[n]).mean(0) for n in names]
                yield kind, torch.stack(means).float().cpu()
        if dictionary is not None and seen is not None:
            for part in PARTS:
                target = dictionary.target(part, seen[1], seen[0])
                change = (target.source - target.base).mean(0, keepdim=True)
                yield part, change.float().cpu()


def _other(i: int, pairs: Sequence[Pair]) -> int | None:
    """Return the number of the next pair with another answer, if there is one."""
    n = len(pairs)
    others = ((i + step) % n for step in range(1, n))
    return next((j for j in others if pairs[j].answer != pairs[i].answer), None)
