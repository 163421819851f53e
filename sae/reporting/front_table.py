"""A run's dictionaries as one table: what tells them apart, which to take, CSV and screen."""

import csv
import io
from collections import Counter, defaultdict
from typing import Any

Row = dict[str, Any]
"""Figures of one dictionary, as `sae eval` writes them."""

COLUMNS = (
    "id",
    "architecture",
    "d_sae",
    "l1_coefficient",
    "k",
    "target_l0",
    "l0_coefficient",
    "lr",
    "seed",
    "training_tokens",
    "l0",
    "explained_variance",
    "ce_loss_score",
    "ce_loss_score_mean_ablation",
    "kl_div_score",
    "dead_fraction",
    "mse",
    "training_seconds",
    "hook_name",
    "hook_name_out",
    "recommended",
)
"""Of the CSV; `architecture` is the trained one, which is not always the one saved as."""

_RULE = (
    "the highest explained variance among those with an L0 of at most {l0:g}; if there is "
    "none, the lowest L0."
)
_OTHER_HOOKS = " Hooks differ: compare within a hook only."
_PENALTIES = {"k": "k", "target_l0": "target", "l1_coefficient": "λ", "l0_coefficient": "λ"}
_SWEPT = ("penalty", "width", "lr", "tokens")
_SCREEN = (
    ("l0", "L0", "{:.1f}"),
    ("explained_variance", "expl. var.", "{:.3f}"),
    ("ce_loss_score", "CE score", "{:.3f}"),
    ("kl_div_score", "KL score", "{:.3f}"),
    ("dead_fraction", "dead", "{:.1%}"),
)


def trained_architecture(row: Row) -> str:
    """What was trained: figures of before this was recorded say what it was saved as."""
    return str(row.get("training_architecture") or row.get("architecture") or "dictionary")


def recommended(rows: list[Row], max_l0: float) -> str:
    """Id of the dictionary to look at, by the rule that `rule` states."""
    sparse = [row for row in rows if row["l0"] <= max_l0]
    if sparse:
        return str(max(sparse, key=lambda row: row["explained_variance"])["id"])
    return str(min(rows, key=lambda row: row["l0"])["id"])


def rule(rows: list[Row], max_l0: float) -> str:
    """How `recommended` chose, in a sentence for people."""
    hooks = {_hook(row) for row in rows}
    return _RULE.format(l0=max_l0) + (_OTHER_HOOKS if len(hooks) > 1 else "")


def labelled(rows: list[Row]) -> list[Row]:
    """`rows`, each with the `series` and the `label` that place it in a picture.

    Within an architecture the first of penalty, width, learning rate and length of training
    that differs labels the points; what else differs, the hook too, parts it into series.
    Dictionaries that differ in their seed alone share both; others that do are told by id.
    """
    by_architecture: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_architecture[trained_architecture(row)].append(row)
    found: dict[str, tuple[str, str]] = {}
    for architecture, group in by_architecture.items():
        traits = {row["id"]: _traits(row) for row in group}
        differing = [
            name for name in _SWEPT if len({trait[name] for trait in traits.values()}) > 1
        ]
        point, others = (differing or ["penalty"])[0], differing[1:]
        if len({trait["hook"] for trait in traits.values()}) > 1:
            others.append("hook")
        for name, trait in traits.items():
            parts = [architecture, *(trait[other] for other in others)]
            found[name] = ", ".join(filter(None, parts)), trait[point]
    same = Counter((*found[row["id"]], row.get("seed")) for row in rows)
    return [
        row
        | {
            "series": found[row["id"]][0],
            "label": found[row["id"]][1]
            if same[(*found[row["id"]], row.get("seed"))] == 1
            else row["id"],
        }
        for row in rows
    ]


def _traits(row: Row) -> dict[str, str]:
    penalties = (
        f"{sign} = {row[key]:g}" for key, sign in _PENALTIES.items() if row.get(key) is not None
    )
    lr, tokens, width = (row.get(key) for key in ("lr", "training_tokens", "d_sae"))
    return {
        "penalty": next(penalties, ""),
        "width": f"{width:,} latents" if width else "",
        "lr": f"lr {lr:g}" if lr is not None else "",
        "tokens": f"{tokens:,} tokens" if tokens else "",
        "hook": _hook(row),
    }


def _hook(row: Row) -> str:
    hooks = (row.get("hook_name"), row.get("hook_name_out"))
    return " to ".join(dict.fromkeys(hook for hook in hooks if hook))


def as_csv(rows: list[Row], chosen: str) -> str:
    """One line a dictionary, under `COLUMNS`; what is not known is left empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        own = {"architecture": trained_architecture(row), "recommended": row["id"] == chosen}
        writer.writerow(row | own)
    return out.getvalue()


def as_text(rows: list[Row], chosen: str, stated: str) -> str:
    """The table for a terminal; of several, `*` marks the one recommended by the rule."""
    several = len(rows) > 1
    shown = [
        column for column in _SCREEN if any(row.get(column[0]) is not None for row in rows)
    ]
    cells = [["dictionary", *(name for _, name, _ in shown)]]
    for row in rows:
        figures = (
            "–" if row.get(key) is None else write.format(row[key]) for key, _, write in shown
        )
        cells.append([row["id"], *figures])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    marks = ["*" if several and row["id"] == chosen else " " for row in rows]
    lines = [
        "  ".join(
            [f"{mark} {first:<{widths[0]}}"]
            + [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
        ).rstrip()
        for mark, (first, *rest) in zip([" ", *marks], cells, strict=True)
    ]
    measured = rows[0].get("n_rows")
    if measured:
        lines.append(f"  on {measured:,} held-out rows")
    return "\n".join(lines + ([f"* recommended: {stated}"] if several else []))
