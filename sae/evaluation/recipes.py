"""What recipes find of a world, over their seeds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import torch

from sae.base import JsonObject, read_object, write_json
from sae.core.bootstrap import bootstrap_mean
from sae.findings import Finding

COLUMNS = (
    "truth_f1",
    "truth_mcc",
    "truth_recovered",
    "truth_uniqueness",
    "truth_l0",
    "l0",
    "explained_variance",
    "dead_fraction",
)
"""What the table shows, in this order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """One dictionary beside the truth, as `truth/ID.json` keeps it."""

    id: str
    recipe: str
    """The dictionary's name without its seed."""
    seed: int
    digest: str
    """Identifies weights, world and rows."""
    world: Mapping[str, object]
    findings: Sequence[Finding]

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        about = {f.name: getattr(self, f.name) for f in fields(self)}
        write_json(path, {**about, "findings": [one.to_json() for one in self.findings]})

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote.

        Raises:
            UserError: if the file holds something else.
        """
        cure = "remove it and run sae truth again"
        found = read_object(path, cure)
        findings = [
            Finding.from_json(JsonObject(str(path), f"findings[{i}]", one, cure))
            for i, one in enumerate(found.get("findings", list))
        ]
        texts = {key: found.get(key, str) for key in ("id", "recipe", "digest")}
        world: Mapping[str, object] = found.get("world", dict)
        return cls(seed=found.get("seed", int), world=world, findings=findings, **texts)


def over_seeds(scored: Iterable[Scored]) -> dict[str, list[Finding]]:
    """Return the mean of each figure of each recipe over its seeds, with its interval.

    Of a single seed the figures are as they are: their intervals are over latents or features.
    """
    recipes: dict[str, list[Scored]] = {}
    for one in scored:
        recipes.setdefault(one.recipe, []).append(one)
    return {
        recipe: [_mean(figures) for figures in zip(*(one.findings for one in own), strict=True)]
        for recipe, own in recipes.items()
    }


def _mean(figures: Sequence[Finding]) -> Finding:
    first = figures[0]
    values = torch.tensor([one.value for one in figures if one.value is not None])
    if len(figures) == 1 or not len(values):
        return first
    mean, *ends = bootstrap_mean(values)
    low, high = (end if math.isfinite(end) else None for end in ends)
    floors = [one.floor for one in figures if one.floor is not None]
    return Finding(
        key=first.key,
        value=mean,
        low=low,
        high=high,
        n=len(values),
        unit="seeds",
        floor=sum(floors) / len(floors) if floors else None,
        floor_of=first.floor_of,
    )


def as_lines(recipes: Mapping[str, Sequence[Finding]]) -> list[str]:
    """Return a table for a terminal: each figure, half its interval's width, and its floor."""
    if not recipes:
        return []
    shown = [
        [one for key in COLUMNS for one in found if one.key == key]
        for found in recipes.values()
    ]
    wide = max(len("recipe"), *map(len, recipes))
    heads = [f"{one.metric.short or one.metric.title:>17}" for one in shown[0]]
    lines = ["  ".join([f"{'recipe':<{wide}}", *heads])]
    for name, found in zip(recipes, shown, strict=True):
        lines.append("  ".join([f"{name:<{wide}}", *(f"{_cell(one):>17}" for one in found)]))
    highest = [
        max((one.floor for one in column if one.floor is not None), default=None)
        for column in zip(*shown, strict=True)
    ]
    floors = [
        f"{_number(one, floor):>17}" for one, floor in zip(shown[0], highest, strict=True)
    ]
    return [*lines, "  ".join([f"{'(random directions)':<{wide}}", *floors])]


def _cell(one: Finding) -> str:
    if one.low is None or one.high is None or one.value is None:
        return _number(one, one.value)
    return f"{_number(one, one.value)} ± {_number(one, (one.high - one.low) / 2)}"


def _number(one: Finding, value: float | None) -> str:
    return "–" if value is None else format(value, one.metric.form)
