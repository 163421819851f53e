"""Every command and code block of the README, run as a reader would run them."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def run(command, folder):
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
    }
    return check(
        subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
    )


def check(done):
    assert done.returncode == 0, f"{done.args}\n{done.stderr[-3000:]}"
    return done


def test_the_readme_has_blocks_of_bash_and_python_only():
    assert {language for language, _ in BLOCKS} == {"bash", "python"}
    assert len(BLOCKS) >= 5


def test_its_make_targets_exist_and_do_what_the_readme_says():
    targets = re.findall(r"^make ([\w-]+)", README, re.MULTILINE)
    assert targets == ["demo", "test", "test-fast"]
    dry = [run(["make", "-n", "-C", str(ROOT), one], ROOT).stdout for one in targets]
    assert "sae demo" in dry[0]
    assert "-m pytest" in dry[1]
    assert "not slow" not in dry[1]
    assert "-m pytest" in dry[2]
    assert '-m "not slow"' in dry[2]
    run(["make", "-C", str(ROOT), "help"], ROOT)


@pytest.mark.slow
@pytest.mark.longest
def test_every_other_block_runs_in_order(tmp_path, start, start_python):
    for language, block in BLOCKS:
        if language == "python":
            if "sae_lens" in block:
                pytest.importorskip("sae_lens")
            check(start_python(block, folder=tmp_path).ended())
            continue
        for line in block.splitlines():
            if not line.startswith("make "):
                name, *words = shlex.split(line, comments=True)
                assert name == "sae"
                check(start(*words, folder=tmp_path).ended())
    assert (tmp_path / "runs/mine/export").is_dir()
    assert len(list((tmp_path / "runs/mine/dictionaries").iterdir())) == 12


def test_every_file_that_the_readme_names_is_there():
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
