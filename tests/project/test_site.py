"""The documentation site: it builds without a warning, and nothing public is left out."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import sae
from sae.config.commands import COMMANDS, python_calls

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module", name="site")
def site_fixture(tmp_path_factory):
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    # Strict: a broken link, a dead anchor and a page that the contents leave out are errors;
    # scripts/site_links.py then reads the finished pages.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_has_all_its_pages_and_its_notebooks(site):
    assert len(list(site.rglob("*.html"))) > 40
    for notebook in DOCS.glob("tutorials/*.ipynb"):
        assert (site / "tutorials" / "notebooks" / notebook.name).is_file()
        page = (site / "tutorials" / f"{notebook.stem}.html").read_text("utf-8")
        assert "<!-- output" not in page
        assert 'class="output' in page


def test_a_link_that_leads_nowhere_ends_the_build(tmp_path):
    links = runpy.run_path(str(ROOT / "scripts" / "site_links.py"))
    (tmp_path / "a.html").write_text(
        '<p id="x"></p><a href="#x">here</a><a href="https://other.example">other</a>'
        '<a href="b.html#no">1</a><a href="c.html">2</a><img src="//other.example/x.png">'
    )
    (tmp_path / "b.html").write_text('<p id="yes"></p><a href="a.html#x">back</a>')
    (tmp_path / "s.css").write_text("@font-face { src: url(https://other.example/x.woff) }")
    assert list(links["wrong_links"](tmp_path)) == [
        "a.html is shown with //other.example/x.png, which is on another host",
        "a.html links to b.html#no, and the page has no such anchor",
        "a.html links to c.html, and there is no such file",
        "s.css asks for https://other.example/x.woff, which is on another host",
    ]
    with pytest.raises(links["PluginError"], match="no such file"):
        links["on_post_build"](SimpleNamespace(site_dir=str(tmp_path)))


def test_every_public_name_is_described(site):
    folder = site / "reference"
    text = "".join(page.read_text("utf-8") for page in folder.glob("*.html"))
    named = [name for name in dir(sae) if name not in python_calls()]
    assert [name for name in named if not re.search(rf'id="[\w.]*{name}"', text, re.I)] == []


def test_every_command_and_every_key_has_its_place(site):
    for name, command in COMMANDS.items():
        first = name.split()[0]
        text = (site / "commands" / f"{first}.html").read_text("utf-8")
        for field in command.config_class().__dataclass_fields__:
            assert f"<code>{field}" in text, f"{name}: {field}"


def test_code_of_the_pages_that_is_not_run_has_its_reason_and_right_words():
    found = runpy.run_path(str(ROOT / "scripts" / "page_code.py"))
    blocks = [block for page in found["pages"]() for block in found["blocks"](page)]
    assert len(blocks) > 30
    left = [block for block in blocks if block.reason is not None]
    assert [block.page for block in left if len(block.reason.split()) < 3] == []
    assert [wrong for block in left if (wrong := block.wrong_words())] == []


def test_every_page_is_in_the_contents():
    contents = (ROOT / "mkdocs.yml").read_text("utf-8")
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.[mi][dp]*")]
    assert [page for page in pages if f" {page}\n" not in contents] == []
