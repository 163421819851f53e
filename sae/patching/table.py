"""Effects averaged over pairs, with intervals, as records of `patching.parquet`."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.core.bootstrap import bootstrap_means
from sae.patching.cells import Cell
from sae.patching.study import Found

if TYPE_CHECKING:
    import pyarrow

COLUMNS = (
    "method",
    "patch",
    "site",
    "receiver",
    "group",
    "layer",
    "head",
    "position",
    "feature",
    "effect",
    "low",
    "high",
    "n",
)
"""What a record of the table says; `docs/patching.md` explains each."""
_NUMBERS = ("group", "layer", "head", "position", "feature", "n")


def table_of(groups: Sequence[Found]) -> "pyarrow.Table":
    """Return all mean effects with their 95% intervals, one record each."""
    import pyarrow

    rows: list[dict[str, Any]] = []
    for number, found in enumerate(groups):
        for (method, patch), effects in found.effects.items():
            if method != "norm":
                rows += _rows(number, method, patch, found.cells, effects)
    kinds = {
        name: pyarrow.int32()
        if name in _NUMBERS
        else pyarrow.float64()
        if name in ("effect", "low", "high")
        else pyarrow.string()
        for name in COLUMNS
    }
    return pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(list(kinds.items())))


def _rows(
    group: int,
    method: str,
    patch: str,
    cells: Sequence[Cell],
    effects: Float[Tensor, "pair cell"],
) -> list[dict[str, Any]]:
    there = ~effects.isnan()
    pairs = there.any(1)
    measured = effects[pairs]
    if not len(measured):
        return []
    # Where clean and corrupt are the same up to a cell, it is exactly 0 for each pair.
    means, lows, highs = bootstrap_means(measured)
    rows = []
    for i, cell in enumerate(cells):
        if bool(there[pairs, i].all()):
            found = {
                name: float(v[i]) for name, v in zip(_ENDS, (means, lows, highs), strict=True)
            }
            rows.append(
                {
                    "method": method,
                    "patch": patch,
                    "group": group,
                    "n": len(measured),
                    **{name: getattr(cell, name) for name in _OF_A_CELL},
                    **{k: v if math.isfinite(v) else None for k, v in found.items()},
                }
            )
    return rows


_ENDS = ("effect", "low", "high")
_OF_A_CELL = ("site", "receiver", "layer", "head", "position", "feature")


def agreement_of(groups: Sequence[Found]) -> list[dict[str, Any]]:
    """Return how far estimates agree with exact patching: Pearson's r over cells and pairs.

    Beside them stands that of the mere length of what is put in (`norm`), which is the floor.
    Cells at which both runs are the same are left out: there all say 0. It is left out where
    fewer than three cells were measured, or all are equal.
    """
    rows = []
    kinds = dict.fromkeys(cell.site for found in groups for cell in found.cells)
    for kind in kinds:
        for patch in ("denoising", "noising"):
            for method in ("plain", "relp", "ig", "norm"):
                both = [_both(found, kind, method, patch) for found in groups]
                joined = torch.cat(both, 1) if both else torch.zeros(2, 0)
                r = correlation(joined[0], joined[1].abs() if method == "norm" else joined[1])
                if r is not None:
                    rows.append(
                        {"site": kind, "patch": patch, "method": method, "r": r}
                        | {"n": joined.shape[1]}
                    )
    return rows


def _both(found: Found, kind: str, method: str, patch: str) -> Float[Tensor, "2 measured"]:
    """Return exact effects and what a method says, of the cells of a kind."""
    exact, norms = (found.effects.get((name, patch)) for name in ("exact", "norm"))
    other = found.effects.get((method, patch))
    if exact is None or other is None or norms is None:
        return torch.zeros(2, 0, dtype=torch.float64)
    own: Bool[Tensor, " cell"] = torch.tensor([cell.site == kind for cell in found.cells])
    columns = torch.stack([of[:, own].flatten() for of in (exact, other, norms)])
    there = ~columns.isnan().any(0) & (columns[2] > 0)
    return columns[:2, there]


def correlation(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float | None:
    """Return Pearson's r; None of fewer than three values, or where one side never varies."""
    if len(a) < 3 or float(a.std()) == 0 or float(b.std()) == 0:
        return None
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def control_rows(groups: Sequence[Found]) -> list[Mapping[str, Any]]:
    """Return the strongest cell of each kind beside its control, of each group."""
    return [
        {name: getattr(control.cell, name) for name in ("site", "layer", "position", "head")}
        | {"group": number, "effect": control.effect, "control": control.control}
        for number, found in enumerate(groups)
        for control in found.controls
    ]


def cost_rows(groups: Sequence[Found]) -> list[dict[str, Any]]:
    """Return what each kind of measurement has cost, all groups together."""
    found: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
    for group in groups:
        for spent in group.spent:
            row = found.setdefault(
                tuple(spent.what.items()), dict(spent.what) | {"seconds": 0.0}
            )
            row["seconds"] += spent.seconds
            if spent.cost is not None:
                row["n_patched"] = row.get("n_patched", 0) + spent.cost.patched
                row["naive"] = row["n_patched"]
                row["forwards"] = row.get("forwards", 0.0) + spent.cost.forwards
    return list(found.values())
