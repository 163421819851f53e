"""What a new command costs: a module, and a line in the table."""

import inspect
import re

import pytest

import sae
from sae.base.errors import UserError
from sae.cli import main
from sae.config.commands import COMMANDS, Command

MODULE = '''
"""Count the letters of a word."""

from dataclasses import dataclass, field

from sae.base.errors import require
from sae.base.progress import show
from sae.text.source import DataConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class CountConfig:
    """Count how often a letter is in a word."""

    word: str
    """The word to look into."""
    letter: str = "a"
    """The letter to count."""
    data: DataConfig = field(default_factory=DataConfig)
    """Where words are from."""

    def __post_init__(self):
        require(len(self.letter) == 1, f"letter={self.letter} is none; give one")


def run(config: CountConfig, beside: int = 0) -> int | bool:
    """Print how often it is there, and return False if it is nowhere."""
    found = config.word.count(config.letter) + beside
    show(f"{found} in {config.data.name}")
    return found or False
'''


@pytest.fixture
def count(tmp_path, monkeypatch):
    """A command that was added as `CONTRIBUTING.md` says."""
    (tmp_path / "count_module.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    summary = "count letters"
    line = Command("count", summary, places=("word",), home="count_module")
    monkeypatch.setitem(COMMANDS, "count", line)
    yield
    for name in ("count", "CountConfig"):
        vars(sae).pop(name, None)


@pytest.mark.usefixtures("count")
def test_a_module_and_a_line_are_a_command_with_keys_groups_help_and_refusals(capsys):
    assert main(["count", "banana", "data=factbook"]) == 0
    assert capsys.readouterr().out == "3 in factbook\n"
    assert main(["count", "banana", "letter=x"]) == 1
    assert main(["--help"]) == 0
    assert re.search(r"\n  count +count letters\n", capsys.readouterr().out)
    assert main(["count", "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "sae count WORD [group=choice ...] [key=value ...]\n\nCount how often"
    )
    assert "  data=...  factbook, miscellany, pile, or any name or path" in said
    assert "  letter=a\n        The letter to count.\n" in said
    assert main(["count", "banana", "leter=x"]) == 2
    assert "leter is no key of sae count; nearest: letter" in capsys.readouterr().err
    assert main(["count", "banana", "letter=ab"]) == 2
    assert capsys.readouterr().err == "sae count: letter=ab is none; give one\n"
    assert main(["coutn"]) == 2
    assert "nearest: count" in capsys.readouterr().err


@pytest.mark.usefixtures("count")
def test_it_is_a_call_of_the_package_too(capsys):
    assert {"count", "CountConfig"} < set(dir(sae))
    assert sae.count(sae.CountConfig(word="banana")) == 3
    assert sae.count(word="banana", data="pile", beside=2) == 5
    assert capsys.readouterr().out.endswith("5 in monology/pile-uncopyrighted\n")
    assert list(inspect.signature(sae.count).parameters) == ["word", "letter", "data", "beside"]
    with pytest.raises(UserError, match=r"sae\.count needs word=\.\.\."):
        sae.count()
