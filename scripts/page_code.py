"""Run the code of the documentation's pages, as a reader would: `python scripts/page_code.py`.

Every block marked `bash` or `python` runs, page after page in the order of the site's contents,
in one folder that is empty at first. A comment `<!-- not run: REASON -->` before a block leaves
it out, with its reason in what is printed; the words of its `sae` commands must still be right.

    python scripts/page_code.py docs/cache.md docs/training.md   # these pages alone
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sae.base import UserError
from sae.config.commands import chosen
from sae.config.compose import build
from sae.config.launch import grid

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>.*?) -->\s*)?"
    r"^```(?P<language>bash|python)\n(?P<code>.*?)^```",
    re.DOTALL | re.MULTILINE,
)
_CONTENTS = re.compile(r"^\s*- ([\w/-]+\.md)$", re.MULTILINE)
_GIVEN_UP_AFTER = 900.0
"""Seconds for one block."""


@dataclass(frozen=True)
class Block:
    """Code of a page."""

    page: str
    language: str
    code: str
    reason: str | None
    """Why it is not run, if it is not."""

    def run(self, folder: Path) -> str:
        """Run it in a folder; returns what went wrong, or nothing."""
        bin_folder = Path(sys.executable).parent
        environment = {
            **os.environ,
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
            "WANDB_MODE": "offline",
        }
        bash = ["bash", "-euo", "pipefail", "-c", self.code]
        words = bash if self.language == "bash" else [sys.executable, "-c", self.code]
        done = subprocess.run(
            words,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_GIVEN_UP_AFTER,
            check=False,
        )
        return "" if done.returncode == 0 else (done.stdout + done.stderr)[-3000:]

    def wrong_words(self) -> str:
        """Return what is wrong with the words of a block that is not run, or nothing."""
        if self.language == "python":
            try:
                compile(self.code, self.page, "exec")
            except SyntaxError as error:
                return str(error)
            return ""
        for line in self.code.replace("\\\n", " ").splitlines():
            # What other programs are told is theirs.
            words = shlex.split(line, comments=True) if line.startswith("sae ") else []
            if words:
                try:
                    _compose(words[1:])
                except UserError as error:
                    return f"{line}: {error}"
        return ""


def _compose(words: Sequence[str]) -> None:
    """Refuse what the command line would refuse before it begins."""
    # A file of settings, or a folder of choices, is there only for a reader who made it.
    if any(word.startswith(("config=", "--config-dir")) for word in words):
        return
    if not words or words[0].startswith("-") or words[0] == "help":
        return
    command, rest = chosen(words)
    left = [word for word in rest if word not in ("-m", "--help")]
    if "--help" not in rest:
        (grid if command.several else build)(command, left)


def blocks(page: Path) -> Iterator[Block]:
    """Yield the code of a page."""
    for found in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        name = str(page.relative_to(ROOT))
        yield Block(name, found["language"], found["code"], found["reason"])


def pages() -> list[Path]:
    """Return the pages of the site in the order of its contents."""
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    return [ROOT / "docs" / name for name in _CONTENTS.findall(contents)]


def main(names: Sequence[str]) -> int:
    """Run the code of some pages, or of all; returns how many blocks failed."""
    wanted = [Path(name).resolve() for name in names] or pages()
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for block in (block for page in wanted for block in blocks(page)):
            began = time.perf_counter()
            wrong = block.run(Path(scratch)) if block.reason is None else block.wrong_words()
            spent = time.perf_counter() - began
            state = f"not run: {block.reason}" if block.reason else f"{spent:.1f} s"
            first = block.code.strip().splitlines()[0]
            print(f"{block.page}: {first[:60]}: {'FAILED' if wrong else state}", flush=True)
            if wrong:
                failed += 1
                print(wrong)
    print(f"{failed} failed" if failed else "all code of the pages runs")
    return failed


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
