"""What editors and the tab key complete is what the calls and commands take."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import sae
from sae.config.completion import TABLE

ROOT = Path(__file__).parents[2]
STUB = ROOT / "sae" / "__init__.pyi"

RIGHT = """\
import sae
from sae import Dictionary, TrainConfig

one: Dictionary = sae.train(TrainConfig(run="runs/mine"))
two: Dictionary = sae.train(run="a", sae="topk", optim=sae.OptimConfig(lr=1e-3), rows=[])
sae.harvest(model="gpt2", data=sae.DataConfig(name="./texts")).read("h", slice(0, 2))
whole: bool = sae.cache_verify(cache="c.zarr")
sae.save(sae.load("folder"), "other")
"""
WRONG = {
    "a keyword that is none": "sae.train(sede=1)",
    "a value of another type": "sae.train(seed='one')",
    "a word for a part that is no group": "sae.train(optim='fast')",
    "a configuration with a keyword": "sae.train(sae.TrainConfig(), seed=1)",
    "the configuration of another command": "sae.train(sae.EvalConfig())",
    "a keyword that is missing": "sae.cache_info(json=True)",
    "rows for a command without any": "sae.eval(rows=[])",
}


def test_the_stub_and_the_table_of_keys_are_what_the_script_writes():
    script = runpy.run_path(str(ROOT / "scripts" / "stubs.py"))
    for path, write in ((STUB, "stub"), (TABLE, "table")):
        written = script[write]()
        assert path.read_text(encoding="utf-8") == written, "run: python scripts/stubs.py"


def test_the_package_says_that_it_is_typed():
    assert (Path(sae.__file__).parent / "py.typed").is_file()


@pytest.mark.slow
def test_a_type_checker_knows_the_calls(tmp_path):
    lines = [f"{call}  # {what}" for what, call in WRONG.items()]
    (tmp_path / "calls.py").write_text(RIGHT + "\n".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml"]
    done = subprocess.run(
        [*command, tmp_path / "calls.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    found = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}
    first = RIGHT.count("\n") + 1
    assert found == set(range(first, first + len(WRONG))), done.stdout + done.stderr
