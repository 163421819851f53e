"""The page of probing: a curve over hooks for each task, and tables with the controls."""

import html
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.base import write_text
from sae.pages.page import filled

if TYPE_CHECKING:
    import pyarrow

Row = Mapping[str, Any]
_WIDE, _HIGH, _LEFT, _BOTTOM = 640, 240, 40, 28
_LOWEST = 0.3
"""AUC at the bottom of a curve."""
_INPUTS = {
    "raw": "raw activations",
    "difference_of_means": "difference of means",
    "channels": "single channels",
    "features": "features",
    "random_decoder": "random decoder",
}
_KEYS = (
    ("raw", "raw activations, with 95% intervals"),
    ("means", "difference of means"),
    ("features", "features, all"),
    ("random", "random decoder, all"),
    ("floor", "shuffled labels"),
)


def write_probing_page(folder: Path, summary: Row, table: "pyarrow.Table") -> None:
    """Write `index.html` into a folder: what probing found, whole and opened from disk."""
    rows = table.to_pylist()
    tasks = [
        _section(task, [r for r in rows if r["task"] == task["name"]], summary)
        for task in summary["tasks"]
    ]
    page = filled(
        "probing.html",
        title=_text(f"{summary['name']}: probes of {summary['model']}"),
        model=_text(summary["model"]),
        statement=_text(summary["statement"]),
        about=_about(summary),
        tasks="\n".join(tasks),
        left_out=_left_out(summary["left_out"]),
    )
    write_text(folder / "index.html", page)


def _text(value: object) -> str:
    """Return what is safe as markup, whatever a data set says; half characters are gone."""
    whole = str(value).encode("utf-8", "replace").decode("utf-8")
    return html.escape(whole)


def _about(summary: Row) -> str:
    found = (
        f"Penalties, pools and hooks are chosen on validation texts, never on test texts. "
        f"Labels were shuffled {summary['n_permuted']} times for the floor."
    )
    about = summary["dictionary"]
    if about is None:
        return f"{found} There is no dictionary, so no features were probed."
    return (
        f"{found} Features are those of {_text(about['name'])}, at "
        f"{_text(about['hook_name'])} alone: other hooks have no dictionary. Its control has as many random directions, and "
        f"keeps {about['control_k']} features of a token where the dictionary has "
        f"{about['l0']:.1f} on average."
    )


def _left_out(tasks: Sequence[Row]) -> str:
    if not tasks:
        return ""
    lines = "".join(f"<li>{_text(one['task'])}: {_text(one['why'])}</li>" for one in tasks)
    return f'<section><h2>What was left out</h2><ul class="note">{lines}</ul></section>'


def _section(task: Row, rows: Sequence[Row], summary: Row) -> str:
    first, second = task["labels"]
    cut = f"; of {task['n_cut']} only a beginning is read" if task["n_cut"] else ""
    n_ood = task["n_elsewhere"]
    ood = f", and on {n_ood} from elsewhere" if n_ood else ""
    return "\n".join(
        [
            '<section class="probe-task">',
            f"<h2>{_text(task['name'])}</h2>",
            f'<p class="intro">“{_text(first)}” or “{_text(second)}”: fitted to '
            f"{task['n_train']} texts, tested on {task['n_test']} others{ood}{cut}.</p>",
            _curve(rows, summary["hooks"]),
            _best(rows),
            _causal(rows, summary),
            _learning(task["learning_curves"]),
            "</section>",
        ]
    )


def _curve(rows: Sequence[Row], hooks: Sequence[str]) -> str:
    """Return the curve over hooks as SVG."""
    shown = [r for r in rows if r["chosen"] and r["k"] is None]
    by = {
        name: sorted((r for r in shown if r["inputs"] == name), key=_layer) for name in _INPUTS
    }
    last = max(1, len(hooks) - 1)

    def x(row: Row) -> float:
        return _LEFT + (_WIDE - _LEFT - 12) * _layer(row) / last

    def y(value: float) -> float:
        return 8 + (_HIGH - _BOTTOM - 8) * (1 - (max(value, _LOWEST) - _LOWEST) / (1 - _LOWEST))

    def line(own: Sequence[Row], of: str, kind: str) -> str:
        points = [f"{x(r):.1f},{y(r[of]):.1f}" for r in own if r[of] is not None]
        return f'<path class="{kind}" d="M{" L".join(points)}"/>' if points else ""

    parts = []
    for value in (0.5, 0.75, 1.0):
        at = f"{y(value):.1f}"
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDE - 12}" y1="{at}" y2="{at}"/>')
        parts.append(
            f'<text x="{_LEFT - 8}" y="{at}" dy="4" text-anchor="end">{value:g}</text>'
        )
    raw = by["raw"]
    there = [f"{x(r):.1f},{y(r['auc_high']):.1f}" for r in raw]
    back = [f"{x(r):.1f},{y(r['auc_low']):.1f}" for r in reversed(raw)]
    parts.append(f'<polygon class="band" points="{" ".join([*there, *back])}"/>')
    parts += [line(raw, "permuted_auc", "floor"), line(raw, "auc", "raw")]
    parts.append(line(by["difference_of_means"], "auc", "means"))
    for name, kind in (("random_decoder", "random"), ("features", "features")):
        parts += _points(by[name], kind, x, y)
    for i in sorted({0, last // 2, len(hooks) - 1}):
        place = x({"layer": i})
        anchor = "start" if i == 0 else "end" if i == len(hooks) - 1 else "middle"
        name = _text(hooks[i])
        parts.append(
            f'<text x="{place:.1f}" y="{_HIGH - 6}" text-anchor="{anchor}">{name}</text>'
        )
    label = "AUC of probes over hooks; the same figures are in the tables"
    keys = "".join(
        f'<li class="{kind}"><span>{name}</span></li>'
        for kind, name in _KEYS
        if by["features"] or kind not in ("features", "random")
    )
    return (
        '<figure class="curve"><figcaption>AUC on test texts<small>at each hook the pool that '
        "validation chose; 0.5 is chance</small></figcaption>"
        f'<svg viewBox="0 0 {_WIDE} {_HIGH}" role="img" aria-label="{label}">{"".join(parts)}</svg><ul class="keys">{keys}</ul>'
        "</figure>"
    )


def _points(
    own: Sequence[Row],
    kind: str,
    x: Callable[[Row], float],
    y: Callable[[float], float],
) -> Iterator[str]:
    for row in own:
        at = f"{x(row) + (4 if kind == 'random' else -4):.1f}"
        low, high = f"{y(row['auc_low']):.1f}", f"{y(row['auc_high']):.1f}"
        yield f'<line class="{kind}" x1="{at}" x2="{at}" y1="{low}" y2="{high}"/>'
        yield f'<circle class="{kind}" cx="{at}" cy="{y(row["auc"]):.1f}" r="4"/>'


def _layer(row: Row) -> int:
    found: int = row["layer"]
    return found


def _best(rows: Sequence[Row]) -> str:
    """Return the table of what validation chose of each kind of inputs."""
    best = [r for r in rows if r["best"]]
    head = ["inputs", "hook", "pool", "AUC", "shuffled", "accuracy", "elsewhere", "selectivity"]
    body = []
    for row in best:
        few = "all" if row["k"] is None else f"k = {row['k']}"
        name = _INPUTS[row["inputs"]]
        body.append(
            [
                name if row["inputs"] == "difference_of_means" else f"{name}, {few}",
                _text(row["hook_name"]),
                _text(row["pool"]),
                _interval(row, "auc"),
                _number(row["permuted_auc"]),
                _interval(row, "accuracy"),
                _interval(row, "ood_auc", "ood"),
                _number(row["selectivity"]),
            ]
        )
    return _table("Where validation thought best of each", [*head, "bits a label"], [
        [*cells, _number(None if r["bits"] is None else r["bits"] / r["n_train"])]
        for cells, r in zip(body, best, strict=True)
    ])  # fmt: skip


def _causal(rows: Sequence[Row], summary: Row) -> str:
    """Return the table of what the best probe's direction does in the model."""
    found = next((r for r in rows if r["steer_kl"] is not None), None)
    if found is None:
        why = (
            "the model predicts no next token" if not summary["causal"] else
            "causal=false, or only an attention probe, which has no one direction"
        )  # fmt: skip
        return f'<p class="note">What its direction causes was not measured: {why}.</p>'
    later = found["later_hook"]
    lines = [
        ["added: KL of next tokens, nats", found["steer_kl"], found["steer_kl_random"]],
        ["taken out: KL of next tokens, nats", found["ablate_kl"], found["ablate_kl_random"]],
    ]
    if later is not None:
        lines += [
            [
                "added: later log-odds move by",
                found["steer_later"],
                found["steer_later_random"],
            ],
            [
                "taken out: later AUC",
                found["ablate_later_auc"],
                found["ablate_later_auc_random"],
            ],
        ]
    body = [[name, _number(own), _number(random)] for name, own, random in lines]
    place = f"{_text(found['hook_name'])}, {found['causal_n']} test texts"
    behind = (
        f"The later probe reads {_text(later)}; its AUC is {_number(found['later_auc'])} as "
        "the model is."
        if later is not None
        else "It is the last hook that was asked for, so no later probe was read."
    )
    table = _table(f"What its direction does, at {place}", ["change", "probe", "random"], body)
    return f'{table}<p class="note">{behind}</p>'


def _learning(curves: Sequence[Row]) -> str:
    if not curves:
        return ""
    body = [
        [
            _INPUTS[r["inputs"]],
            str(r["n_train"]),
            _interval(r, "auc"),
            _number(r["permuted_auc"]),
        ]
        for r in curves
    ]
    return _table("With fewer texts", ["inputs", "texts", "AUC", "shuffled"], body)


def _interval(row: Row, name: str, ends: str | None = None) -> str:
    value, low = row[name], row[f"{ends or name}_low"]
    if value is None:
        return "–"
    return f"{value:.2f} <small>[{low:.2f}, {row[f'{ends or name}_high']:.2f}]</small>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if abs(value) >= 0.095 else f"{value:.3f}"


def _table(caption: str, head: Iterable[str], body: Iterable[Sequence[str]]) -> str:
    """Return a table that may be wider than the page; its cells are markup already."""
    titles = "".join(f'<th scope="col">{one}</th>' for one in head)
    lines = "".join(
        f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for cells in body
    )
    return (
        f'<div class="wide" tabindex="0"><table><caption>{caption}</caption><thead><tr>{titles}'
        f"</tr></thead><tbody>{lines}</tbody></table></div>"
    )
