"""Hook of the documentation site (`mkdocs.yml`): the tutorials' notebooks as ordinary pages.

A notebook becomes a page of Markdown, with the outputs that are kept in it. It looks like all
other pages in light and in dark colours, and its links and anchors are checked like theirs. It
is also as quick to open: a page of JupyterLab's own HTML brings 600 kB of styles along.
"""

import base64
import json
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ENDING = ".ipynb"
_FENCE = "`" * 4
"""Longer than any fence inside a cell."""
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
"""Colours of a terminal."""
_OUTPUT = re.compile(r"<!-- output (\d+) -->")


class Notebook(File):
    """A notebook that is a page of the site."""

    outputs: list[str]
    """Outputs that are HTML, which takes its place after the Markdown has become HTML."""

    def is_documentation_page(self) -> bool:
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put a page in the place of each notebook, with its pictures and the notebook itself."""
    for file in [one for one in files if one.src_uri.endswith(_ENDING)]:
        files.remove(file)
        text = file.content_string
        page = Notebook.generated(config, file.src_uri, content="")
        assert isinstance(page, Notebook)
        page.outputs = []
        page.content_string = "\n\n".join(_cells(json.loads(text), page, files, config))
        files.append(page)
        files.append(File.generated(config, _own(file.src_uri), content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Offer the notebook itself, under the title of its page."""
    if not isinstance(page.file, Notebook):
        return markdown
    place = posixpath.relpath(
        _own(page.file.src_uri), posixpath.dirname(page.file.src_uri) or "."
    )
    offer = f'\n\n<p class="notebook"><a href="{place}" download>Download this notebook</a></p>'
    title, rest = markdown.split("\n", 1) if "\n" in markdown else (markdown, "")
    return f"{title}{offer}\n{rest}"


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put outputs that are HTML where they belong."""
    file = page.file
    if not isinstance(file, Notebook):
        return content
    return _OUTPUT.sub(lambda found: file.outputs[int(found[1])], content)


def _own(source: str) -> str:
    """Return where the notebook itself is in the site."""
    folder, name = posixpath.split(source)
    return posixpath.join(folder, "notebooks", name)


def _cells(
    notebook: Mapping[str, Any], page: Notebook, files: Files, config: MkDocsConfig
) -> Iterator[str]:
    """Yield the cells of a notebook and what they printed, as Markdown."""
    for cell in notebook["cells"]:
        text = "".join(cell["source"]).strip("\n")
        if cell["cell_type"] == "markdown":
            yield text
        elif cell["cell_type"] == "code" and text:
            yield f"{_FENCE}python\n{text}\n{_FENCE}"
            for output in _merged(cell.get("outputs", ())):
                yield _shown(output, page, files, config)


def _merged(outputs: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield outputs, with what was printed in several pieces as one."""
    printed = ""
    for output in outputs:
        if output["output_type"] == "stream":
            printed += "".join(output["text"])
            continue
        if printed:
            yield {"text": printed}
            printed = ""
        yield output
    if printed:
        yield {"text": printed}


def _shown(output: dict[str, Any], page: Notebook, files: Files, config: MkDocsConfig) -> str:
    """Return an output as Markdown: the richest of its forms that a page can show."""
    data = {kind: "".join(value) for kind, value in output.get("data", {}).items()}
    if picture := data.get("image/png"):
        stem = posixpath.splitext(page.src_uri)[0]
        number = sum(one.src_uri.startswith(f"{stem}-picture-") for one in files)
        name = f"{stem}-picture-{number}.png"
        files.append(File.generated(config, name, content=base64.b64decode(picture)))
        return f"![What the code above draws]({posixpath.basename(name)})"
    if found := data.get("text/html"):
        page.outputs.append(f'<div class="output">{found}</div>')
        return f"<!-- output {len(page.outputs) - 1} -->"
    text = data.get("text/plain", output.get("text", ""))
    return f"{_FENCE}{{.text .output}}\n{_ESCAPES.sub('', text).rstrip()}\n{_FENCE}"
