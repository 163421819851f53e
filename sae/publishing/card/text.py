"""What others wrote, in a card: names, labels and texts show as they are and do nothing."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sae.atlas import Example, ExampleContext

_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~&$])")
# Renderers of the Hub and of GitHub make links of these, marked or not.
_LINKS = re.compile(r"://|www\.|@", re.IGNORECASE)
_BEFORE, _AFTER = 48, 32
"""Characters of a context around the token where it fires most, about: words stay whole."""


def code(value: Any) -> str:
    """`value` as inline code, whatever is in it; Markdown shows all of it and acts on none."""
    text = _clean(value) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in (text[0], text[-1]) else ""
    return f"{fence}{space}{text}{space}{fence}"


def cell(value: Any) -> str:
    """Return `value` as inline code in a table, where a bar would end it even in code."""
    return code(value).replace("|", r"\|")


def plain(value: Any) -> str:
    """`value` as plain text, without the meaning that Markdown and HTML give to characters.

    As code if some of it would become a link.
    """
    return _plain(value, code)


def _plain(value: Any, or_code: Callable[[Any], str]) -> str:
    text = _clean(value)
    if _LINKS.search(text):
        return or_code(text)
    # On the Hub two backslashes and a bracket begin a formula.
    return _MARKS.sub(r"\\\1", text).replace("\\\\", "&#92;")


def _clean(value: Any) -> str:
    """On one line, and without characters that nobody sees or that turn the others around."""
    text = " ".join(str(value).encode("utf-8", "replace").decode().split())
    return "".join(character if character.isprintable() else "�" for character in text)


def quoted(text: str) -> str:
    """Return a text as Python has it."""
    return json.dumps(text, ensure_ascii=False)


def table(head: str, rows: Iterable[Iterable[str]]) -> str:
    """Return a table whose columns are named in `head`, with bars between the names."""
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"| {head} |\n|{'---|' * (1 + head.count('|'))}\n{lines}"


def example_table(examples: Sequence[Example]) -> str:
    """Return a table of features, each with the text where it fires most."""
    rows = (
        (
            str(one.feature),
            _plain(one.label, cell),
            f"{100 * one.density:.2g}%",
            _context(one.contexts[0]) if one.contexts else "",
        )
        for one in examples
    )
    return table("feature | label | share of rows | where it fires most", rows)


def _context(context: ExampleContext) -> str:
    tokens, peak = context.tokens, context.peak
    before, after = "".join(tokens[:peak]), "".join(tokens[peak + 1 :])
    if len(before) > _BEFORE:
        cut = before[-_BEFORE:]
        before = f"…{cut.partition(' ')[2] or cut}"
    if len(after) > _AFTER:
        cut = after[:_AFTER]
        after = f"{cut.rpartition(' ')[0] or cut}…"
    found = f"<b>{_seen(tokens[peak]) or ' '}</b>"
    # Words stay apart, and what is one word together.
    if before.strip():
        apart = " " * (before[-1:].isspace() or tokens[peak][:1].isspace())
        found = f"{_seen(before)}{apart}{found}"
    if after.strip():
        apart = " " * (after[:1].isspace() or tokens[peak][-1:].isspace())
        found = f"{found}{apart}{_seen(after)}"
    return found


def _seen(text: str) -> str:
    """Line breaks as a sign; a token of spaces alone as one as well."""
    text = text.replace("\r\n", "\n").replace("\n", "↵")
    return _plain("␣" if text and not text.strip() else text, cell)
