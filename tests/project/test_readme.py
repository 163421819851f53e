"""The README: its length, its links, and its code, run as a reader would run it."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sae.config.commands import COMMANDS

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


def test_the_readme_is_a_screen_and_a_half_with_one_picture_and_five_lines_of_python():
    assert README.count("\n") <= 90
    assert len(re.findall(r"^!\[", README, re.MULTILINE)) == 1
    assert [language for language, _ in BLOCKS] == ["bash", "python", "text", "bash"]
    lines = [line for line in BLOCKS[1][1].splitlines() if line and line != "import sae"]
    assert len(lines) == 5


def test_its_make_targets_exist_and_do_what_the_readme_says():
    targets = re.findall(r"^make ([\w-]+)", README, re.MULTILINE)
    assert targets == ["demo", "test"]
    dry = [run(["make", "-n", "-C", str(ROOT), one], ROOT).stdout for one in targets]
    assert "sae demo" in dry[0]
    assert "-m pytest" in dry[1]
    assert "not slow" not in dry[1]
    run(["make", "-C", str(ROOT), "help"], ROOT)


@pytest.mark.slow
def test_its_question_in_python_has_the_answer_that_it_prints(tmp_path, start_python):
    (code,) = (block for language, block in BLOCKS if language == "python")
    (printed,) = (block for language, block in BLOCKS if language == "text")
    done = check(start_python(code, folder=tmp_path).ended())
    # Another processor may write other words after the city, so those are not compared.
    answer = re.findall(r"^(\d+ +\w+)", printed, re.MULTILINE)
    assert answer == ["10  Paris", "22  Paris", "23  Rome"]
    assert re.findall(r"^(\d+ +\w+)", done.stdout, re.MULTILINE) == answer


@pytest.mark.slow
def test_its_commands_for_a_text_of_your_own_run_in_order(tmp_path, start):
    lines = [
        line for language, block in BLOCKS if language == "bash" for line in block.splitlines()
    ]
    for line in lines:
        if not line.startswith("make "):
            name, *words = shlex.split(line, comments=True)
            assert name == "sae"
            check(start(*words, folder=tmp_path).ended())
    assert (tmp_path / "runs/mine/atlas/topk-768-k-32/index.html").is_file()


def test_every_command_of_the_table_of_commands_is_in_the_readme():
    for name in COMMANDS:
        assert f"`sae {name.split()[0]}`" in README, name


def test_every_file_that_the_readme_names_is_there():
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
