"""The package's own house rules, read from its source."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import sae

ROOT = Path(sae.__file__).resolve().parent
MODULES = sorted(ROOT.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in MODULES]
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_there_are_modules_to_look_at():
    assert {"cli.py", "cache/layout.py", "commands/train.py"} <= set(NAMES)


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_a_module_has_a_docstring_and_at_most_400_lines(path):
    assert ast.get_docstring(tree(path))
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_a_function_has_at_most_60_lines(path):
    lengths = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(tree(path))
        if isinstance(node, FUNCTIONS)
    }
    assert {name: n for name, n in lengths.items() if n > 60} == {}


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_only_the_command_line_prints(path):
    calls = [
        node.lineno
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert calls == [] or path == ROOT / "cli.py"


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_nothing_is_left_for_later(path):
    source = path.read_text(encoding="utf-8")
    assert (
        re.findall(r"\b(?:TODO|FIXME|XXX|NotImplementedError|NotImplemented)\b", source) == []
    )


def test_the_public_names_are_sorted_and_can_be_imported():
    assert sae.__all__ == sorted(sae.__all__)
    assert len(sae.__all__) == len(set(sae.__all__))
    for name in sae.__all__:
        assert getattr(importlib.import_module("sae"), name) is not None
    assert dir(sae) == sae.__all__


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_like_it"):
        sae.nothing_like_it  # noqa: B018
