"""Hooks of the documentation site (`mkdocs.yml`): what is made of the code, and of other files.

- `<!-- keys: sae train -->` in a page becomes the usage and the keys of that command, from the
  same source as `sae train --help`.
- `<!-- names: settings -->` becomes the reference of the public names of that kind.
- A link to a file of the repository outside `docs/`, such as a table of `benchmarks/`, leads to
  a copy of it in the site.
"""

import dataclasses
import html
import inspect
import posixpath
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

import sae
from sae.config.commands import COMMANDS, Command, family, python_calls
from sae.config.groups import groups, usage
from sae.config.keys import REQUIRED, described, keys, kind_in_words

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"(!?\[[^\]]*\])\((?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?\)")
_SHIM = "https://unpkg.com/iframe-worker/shim"
# The style sheet shows a table inside these as short texts on a narrow screen.
_KEYS_BEGIN = ('<div class="keys" markdown>', "")
_KEYS_END = ("", "</div>")
_KEYS = re.compile(r"<!-- keys: sae ([\w -]+) -->")
_NAMES = re.compile(r"<!-- names: (\w+) -->")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside `docs/` that pages link to."""
    pending = [(file.src_uri, file.content_string) for file in files.documentation_pages()]
    seen: set[str] = set()
    while pending:
        page, text = pending.pop()
        for target in _outside(page, text):
            if target in seen or not (ROOT / target).is_file():
                continue
            seen.add(target)
            content = (ROOT / target).read_bytes()
            files.append(
                File.generated(
                    config, target, content=content, inclusion=InclusionLevel.NOT_IN_NAV
                )
            )
            if target.endswith(".md"):
                pending.append((target, content.decode()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what is made of the code, and lead links to the copies."""
    markdown = _KEYS.sub(lambda found: _command(COMMANDS[found[1]]), markdown)
    markdown = _NAMES.sub(lambda found: "\n".join(_names(found[1])), markdown)
    here = posixpath.dirname(page.file.src_uri)

    def led(found: re.Match[str]) -> str:
        place = _place(page.file.src_uri, found[2])
        if place is None:
            return found[0]
        return f"{found[1]}({posixpath.relpath(place, here or '.')}{found[3] or ''})"

    return _LINK.sub(led, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Take the script that lets the search work from disk from the site, not from a host."""
    here = posixpath.dirname(page.file.dest_uri) or "."
    return output.replace(_SHIM, posixpath.relpath("javascripts/iframe-worker.js", here))


def on_post_template(output: str, template_name: str, config: MkDocsConfig) -> str:
    """Do the same for the page of what is not there, whose links begin at the server's root."""
    return output.replace(_SHIM, "/javascripts/iframe-worker.js")


def _place(page: str, link: str) -> str | None:
    """Return where the target of a link is in the site; None if it is where the link says."""
    inside = (ROOT / "docs" / page).is_file()
    folder = posixpath.dirname(f"docs/{page}" if inside else page)
    target = posixpath.normpath(posixpath.join(folder, link))
    if target == "README.md":
        return "index.md"
    if target.startswith("docs/"):
        return None if inside else target.removeprefix("docs/")
    return target


def _outside(page: str, text: str) -> Iterator[str]:
    """Yield the files of the repository outside `docs/` that a page links to."""
    for _, link, _ in _LINK.findall(text):
        place = _place(page, link)
        if place is not None and not (ROOT / "docs" / place).exists():
            yield place


def _command(command: Command) -> str:
    """Return the usage of a command, its choices and its keys, as Markdown."""
    config = command.config_class()
    lines = ["```text", usage(command), "```", ""]
    if command.name in {one.name for one in python_calls().values()}:
        lines += [f"In Python: `sae.{command.python_name}(...)`, with the same keys.", ""]
    listed = list(groups(command).values())
    if listed:
        lines += ["| choice | values |", "|---|---|"]
        for group in listed:
            more = ", or any name or path" if group.named else ""
            lines.append(f"| `{group.name}=` | {', '.join(group.choices)}{more} |")
        lines.append("")
    lines += [*_KEYS_BEGIN, "| key | by default | takes | meaning |", "|---|---|---|---|"]
    for key in keys(config):
        kind = kind_in_words(key.kind).replace("|", "\\|")
        value = "required" if key.value is REQUIRED else f"`{_shown(key.value)}`"
        lines.append(f"| `{key.name}` | {value} | {kind} | {_cell(key.meaning)} |")
    lines += _KEYS_END
    for flag in family(command.name):
        lines += ["", f"To {flag.summary}: `{flag.example}`"]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|")


def _shown(value: object) -> str:
    """Return a default value as it is written on a command line, cut where it is long."""
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    return _cut(str(value))


def _cut(text: str) -> str:
    text = text.replace("\n", " ").replace("`", "'").replace("|", "\\|")
    return text if len(text) <= 60 else f"{text[:57]}..."


def _names(kind: str) -> Iterator[str]:
    """Yield the reference of public names: `settings` are configurations, `objects` others."""
    for name in dir(sae):
        if name in python_calls():
            continue
        found: Any = getattr(sae, name)
        if (name.endswith("Config") or name == "Reading") != (kind == "settings"):
            continue
        alone = (
            "" if inspect.isclass(found) else "\n    options: {show_symbol_type_heading: true}"
        )
        if kind == "settings":
            yield from _settings(name, found)
        else:
            yield f"::: {found.__module__}.{found.__qualname__}{alone}"
        yield ""


def _settings(name: str, config: type[Any]) -> Iterator[str]:
    """Yield a configuration class: what it is for, and its own fields."""
    yield from (f"### {name}", "", inspect.getdoc(config) or "", "")
    yield from (*_KEYS_BEGIN, "| field | by default | type | meaning |", "|---|---|---|---|")
    hints = typing.get_type_hints(config)
    meanings = {key.name: key.meaning for key in described(config)}
    for field in dataclasses.fields(config):
        kind = hints[field.name]
        written = getattr(kind, "__name__", str(kind)) if inspect.isclass(kind) else str(kind)
        if dataclasses.is_dataclass(kind):
            written = f"[{written}](#{written.lower()})"
        if field.default_factory is not dataclasses.MISSING:
            usual = field.default_factory()
            shown = "its defaults" if dataclasses.is_dataclass(usual) else f"`{usual}`"
        elif field.default is dataclasses.MISSING:
            shown = "required"
        else:
            shown = f"`{_cut(repr(field.default))}`"
        kind_cell = written.replace("|", "\\|")
        yield f"| `{field.name}` | {shown} | {kind_cell} | {_cell(meanings[field.name])} |"
    yield from _KEYS_END
