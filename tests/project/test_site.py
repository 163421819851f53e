"""The documentation site: it builds without a warning, and nothing public is left out."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import sae
from sae.config.commands import COMMANDS, python_calls

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module", name="site")
def site_fixture(tmp_path_factory):
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    # Strict: a broken link, a dead anchor and a page that the contents leave out are errors.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_asks_no_other_host_for_anything(site):
    loaded = re.compile(r"<(?:script|img|iframe|link)[^>]*(?:src|href)=\"?(?:https?:)?//")
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    assert [str(page) for page in pages if loaded.search(page.read_text("utf-8"))] == []
    styles = [path.read_text("utf-8") for path in site.rglob("*.css")]
    assert not any(re.search(r"url\(\s*['\"]?https?:", style) for style in styles)


def test_every_link_inside_the_site_leads_somewhere(site):
    dead = []
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        for link in re.findall(r'(?:href|src)="([^"#?:]+)(?:#[^"]*)?"', text):
            # The page of what is not there links from the server's root.
            target = site / link.lstrip("/") if link.startswith("/") else page.parent / link
            if not target.exists():
                dead.append((page.name, link))
    assert dead == []


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
