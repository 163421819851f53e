"""The page of a comparison of two dictionaries, as plain HTML without a script."""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae.base import write_text
from sae.metrics import is_known, metric_of
from sae.pages.comparison import PAGE, Comparison
from sae.pages.page import filled

_SHOWN = 40


def write_matches_page(folder: Path) -> None:
    """Write `index.html` into the folder of a comparison."""
    found = Comparison(folder)
    about = found.summary
    first, second = map(html.escape, about["names"])
    page = filled(
        "matches.html",
        title=f"{first} and {second}",
        first=first,
        second=second,
        hook=html.escape(f"{about['hook_name']} of {about['model_name']}"),
        finding=html.escape(_finding(about)),
        shares=_table(("", "live features", "shared", "in between", "its own"), _shares(about)),
        nulls=_table(("", "mean cosine", "99 of 100 below", "0.7 or more"), _nulls(about)),
        notes="".join(
            f'<p class="note">{html.escape(note)}</p>'
            for note in (*(f"{line}." for line in found.of_equal_numbers()), *about["notes"])
        ),
        figures=_figures(about),
        shared=_features(found, "first", "shared"),
        own_first=_features(found, "first", "own"),
        own_second=_features(found, "second", "own"),
    )
    write_text(folder / PAGE, page)


def _finding(about: Mapping[str, Any]) -> str:
    (first, second), n = about["names"], about["n_live"]
    share, back = (shares["shared"] for shares in about["shares"])
    chance = max(null["shared"] for null in about["nulls"])
    return (
        f"{second} has {share:.1%} of the {n[0]:,} live features of {first}, and {first} has "
        f"{back:.1%} of the {n[1]:,} of {second}; of unrelated directions at most {chance:.1%} "
        "would come as near by how they write alone."
    )


def _shares(about: Mapping[str, Any]) -> Iterable[Sequence[str]]:
    for name, n, shares in zip(about["names"], about["n_live"], about["shares"], strict=True):
        yield (name, f"{n:,}", *(f"{shares[k]:.1%}" for k in ("shared", "between", "own")))


def _nulls(about: Mapping[str, Any]) -> Iterable[Sequence[str]]:
    yield ("these two dictionaries", f"{about['mean_cosine'][0]:.2f}", "", "")
    for null in about["nulls"]:
        yield (
            null["of"],
            f"{null['mean']:.2f}",
            f"{null['high']:.2f}",
            f"{null['shared']:.1%}",
        )


def _figures(about: Mapping[str, Any]) -> str:
    """Return the figures of both, or how to get them."""
    if about["without_figures"]:
        return f'<p class="note">{html.escape(about["without_figures"])}</p>'
    figures, intervals = about["figures"], about["intervals"]
    records = []
    for key in (key for key in figures[0] if key in figures[1] and is_known(key)):
        metric = metric_of(key)
        better = {True: "higher", False: "lower", None: "neither"}[metric.higher_is_better]
        values = (
            _with_interval(one[key], ends.get(key), metric.form)
            for one, ends in zip(figures, intervals, strict=True)
        )
        records.append((metric.title, *values, better))
    return _table(("figure", *about["names"], "better"), records)


def _with_interval(value: float, ends: Sequence[float] | None, form: str) -> str:
    shown = format(value, form)
    return (
        shown if ends is None else f"{shown} [{format(ends[0], form)}, {format(ends[1], form)}]"
    )


def _features(found: Comparison, side: str, kind: str) -> str:
    records = found.records(side, kind, _SHOWN)
    if not records:
        return '<p class="note">None.</p>'
    rows = (
        (
            str(one["feature"]),
            one["label"],
            f"{one['cosine']:.2f}",
            str(one["partner"]) if one["partner"] >= 0 else "",
            one["partner_label"],
        )
        for one in records
    )
    return _table(("feature", "label", "cosine", "nearest of the other", "its label"), rows)


def _table(columns: Sequence[str], records: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    lines = [
        f'<tr><th scope="row">{html.escape(first)}</th>'
        f"{''.join(f'<td>{html.escape(cell)}</td>' for cell in others)}</tr>"
        for first, *others in records
    ]
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
