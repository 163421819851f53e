"""The package's own house rules, read from its source."""

import ast
import graphlib
import importlib
import importlib.util
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

import sae

ROOT = Path(sae.__file__).resolve().parent
MODULES = sorted(ROOT.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in MODULES]
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def told_of(rule: Callable[[Path], object]) -> dict[str, object]:
    """What a rule has against modules of the package, by their names."""
    found = {name: rule(path) for name, path in zip(NAMES, MODULES, strict=True)}
    return {name: against for name, against in found.items() if against}


def test_there_are_modules_to_look_at():
    assert {"cli.py", "cache/layout.py", "commands/train.py"} <= set(NAMES)


def test_a_module_has_a_docstring_and_at_most_400_lines():
    def rule(path):
        n = len(path.read_text(encoding="utf-8").splitlines())
        return n if n > 400 or not ast.get_docstring(tree(path)) else None

    assert told_of(rule) == {}


def test_a_function_has_at_most_60_lines():
    def rule(path):
        lengths = {
            node.name: node.end_lineno - node.lineno + 1
            for node in ast.walk(tree(path))
            if isinstance(node, FUNCTIONS)
        }
        return {name: n for name, n in lengths.items() if n > 60}

    assert told_of(rule) == {}


def test_only_the_command_line_prints():
    def rule(path):
        return [
            node.lineno
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
        ]

    assert set(told_of(rule)) <= {"cli.py"}


def test_nothing_is_left_for_later():
    later = re.compile(r"\b(?:TODO|FIXME|XXX|NotImplementedError|NotImplemented)\b")
    assert told_of(lambda path: later.findall(path.read_text(encoding="utf-8"))) == {}


def test_the_public_names_are_sorted_and_can_be_imported():
    assert sae.__all__ == sorted(sae.__all__)
    assert len(sae.__all__) == len(set(sae.__all__))
    for name in sae.__all__:
        assert getattr(importlib.import_module("sae"), name) is not None
    assert dir(sae) == sae.__all__


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_like_it"):
        sae.nothing_like_it  # noqa: B018


def test_a_command_has_at_most_200_lines():
    for path in sorted((ROOT / "commands").glob("*.py")):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 200, path


def imports() -> dict[str, set[str]]:
    """Which modules of the package each of its modules names."""
    paths = {".".join(("sae", *Path(name).with_suffix("").parts)): name for name in NAMES}
    modules = {name.removesuffix(".__init__"): ROOT / path for name, path in paths.items()}
    found: dict[str, set[str]] = {}
    for name, path in modules.items():
        own = found[name] = set()
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "") in modules:
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                own |= inside & set(modules) or {str(node.module)}
        own.discard(name)
    return found


def test_imports_go_round_in_no_circle():
    circle = []
    try:
        list(graphlib.TopologicalSorter(imports()).static_order())
    except graphlib.CycleError as error:
        circle = error.args[1]
    assert circle == []


def test_at_most_eight_modules_import_more_than_ten_of_the_package():
    busy = {name: len(others) for name, others in imports().items() if len(others) > 10}
    assert len(busy) <= 8, busy


def test_fewer_than_ten_of_a_thousand_lines_name_any():
    lines = [
        line
        for path in MODULES
        for line in path.read_text(encoding="utf-8").splitlines()
        if not line.startswith(("from ", "import "))
    ]
    naming = sum(bool(re.search(r"\bAny\b", line)) for line in lines)
    assert naming < len(lines) / 100


SHAPED = {"Float", "Int", "Bool", "Shaped"}
MAPPINGS = {"dict", "Mapping"}
"""Of tensors by name, each of its own shape."""


def has_bare_tensor(annotation: ast.AST | None) -> bool:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value.strip(), mode="eval").body
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name):
        known = annotation.value.id in SHAPED | MAPPINGS
        return not known and has_bare_tensor(annotation.slice)
    if isinstance(annotation, ast.Name | ast.Attribute):
        return ast.unparse(annotation).removeprefix("torch.") == "Tensor"
    return annotation is not None and any(
        map(has_bare_tensor, ast.iter_child_nodes(annotation))
    )


def public_functions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FUNCTIONS) and not child.name.startswith("_"):
            yield child
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from public_functions(child)


def test_a_public_function_says_which_shapes_its_tensors_have():
    def bare(function):
        arguments = [*ast.walk(function.args)]
        annotations = [a.annotation for a in arguments if isinstance(a, ast.arg)]
        return any(map(has_bare_tensor, [*annotations, function.returns]))

    def rule(path):
        return [one.name for one in public_functions(tree(path)) if bare(one)]

    assert told_of(rule) == {}


@pytest.mark.parametrize("name", ["benchmarks", "scripts"])
def test_what_is_taken_from_the_package_elsewhere_is_there(name):
    for path in sorted((ROOT.parent / name).glob("*.py")):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "sae":
                module = importlib.import_module(str(node.module))
                missing = [
                    alias.name for alias in node.names if not found_in(module, alias.name)
                ]
                assert missing == [], f"{path.name} takes {missing} from {node.module}"


def found_in(module: object, name: str) -> bool:
    inside = f"{getattr(module, '__name__', '')}.{name}"
    return hasattr(module, name) or importlib.util.find_spec(inside) is not None
