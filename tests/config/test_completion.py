"""Tab completion, asked as shells ask, and by real shells at a terminal."""

import contextlib
import os
import pty
import resource
import select
import shlex
import shutil
import subprocess
import sys
import time

import pytest

from sae.cli import main
from sae.config.commands import COMMANDS, FAMILIES
from sae.config.completion import completed

# Where bash breaks words, unless somebody has changed it.
BREAKS = " \t\n\"'><=;|&(:"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a cache, a text whose name has a space, and choices of one's own."""
    (tmp_path / "cache.zarr").mkdir()
    (tmp_path / "my text.txt").touch()
    (tmp_path / ".hidden").touch()
    (tmp_path / "torn\nname").touch()
    for name in ("own/model/mine.yaml", "own/preset/train/quick.yaml"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sae tr", ["train ", "truth "]),
        ("sae --v", ["--version "]),
        ("sae help ev", ["eval "]),
        ("sae cache ", [f"{w} " for w in "export import info merge sample verify".split()]),
        ("sae patch ed", ["edit "]),
        ("sae harvest --l", ["--list-hooks "]),
        ("sae completion ", ["bash ", "zsh "]),
        ("sae train sa", ["sae.", "sae="]),
        ("sae train sae=to", ["sae=topk "]),
        ("sae train sae=standard,to", ["sae=standard,topk "]),
        ("sae train sae.l1_co", ["sae.l1_coefficient="]),
        ("sae train sae=topk sae.l1_co", []),
        ("sae train sae=topk sae.k", ["sae.k=", "sae.k_aux="]),
        (
            "sae train optim.l",
            ["optim.lr=", "optim.lr_decay_steps=", "optim.lr_warm_up_steps="],
        ),
        ("sae train optim.lr=1 optim.lr", ["optim.lr_decay_steps=", "optim.lr_warm_up_steps="]),
        ("sae train seed=", []),
        ("sae train sweep.yes=", ["sweep.yes=false ", "sweep.yes=true "]),
        ("sae harvest model=", ["model=gpt2 ", "model=smollm2 "]),
        ("sae harvest model=./o", ["model=./own/"]),
        ("sae cache verify ca", ["cache.zarr/", "cache="]),
        ("sae harvest data=my", ["data=my\\ text.txt "]),
        ("sae harvest 'data=my te", ["'data=my text.txt"]),
        ("sae cache info t", []),
        ("sae cache info .h", [".hidden "]),
        ("sae --config-dir=o", ["--config-dir=own/"]),
        ("sae harvest --config-dir=own model=mi", ["model=mine "]),
        ("sae --config-dir=own train pre", ["preset="]),
        ("sae --config-dir=own train preset=", ["preset=quick "]),
        ("sae frob ", []),
    ],
)
def test_the_word_at_the_cursor_is_completed(line, expected):
    assert completed(line) == [word if word[0] != "'" else word[1:] for word in expected]


def test_where_the_shell_breaks_words_only_the_last_piece_is_given(folder):
    assert completed("sae train sae=to", BREAKS) == ["topk "]
    assert completed(f"sae cache info {folder}/ca", BREAKS) == [f"{folder}/cache.zarr/"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_keys_to_complete(name):
    assert "config=" in completed(f"sae {name} co")


def test_commands_and_families_are_all_there():
    single = {name for name in COMMANDS if " " not in name}
    listed = {word.strip() for word in completed("sae ")}
    assert listed == single | {*FAMILIES} | {"help", "completion"}


def test_an_answer_takes_less_than_a_third_of_a_second_and_imports_nothing_heavy():
    code = (
        "import sys; from sae.cli import main; "
        "main(['completion', 'words', 'sae train sae.k_']); "
        "print({'torch', 'numpy', 'hydra'} & {*sys.modules})"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines() == ["sae.k_aux=", "set()"]
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3


def test_the_help_names_the_command_and_other_shells_are_refused(capsys):
    assert main(["--help"]) == main(["completion"]) == main(["help", "completion"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("source <(sae completion bash)") == 3
    assert main(["completion", "fish"]) == 2
    assert "there is no completion for fish; give bash or zsh" in capsys.readouterr().err


# A shell that reads its settings from a folder, what these have to be called, and what is
# left to type after a word in quotation marks: bash closes them itself.
SHELLS = {
    "bash": (["--rcfile", "{}/.bashrc", "-i"], ".bashrc", ""),
    "zsh": (["-i"], ".zshrc", "'"),
}
TYPED = {
    "tra\tsae=to\tsae.k=8 optim.b\t1\t0 ": "<train><sae=topk><sae.k=8><optim.beta1=0>",
    "cache ver\tcache.\t": "<cache><verify><cache.zarr/>",
    "harvest data=my\t": "<harvest><data=my text.txt>",
    "harvest data=my\\ t\t": "<harvest><data=my text.txt>",
    "harvest 'data=my te\t{} seed=1": "<harvest><data=my text.txt><seed=1>",
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_at_a_terminal_completes_what_is_typed(shell, folder):
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"there is no {shell} here")
    words, settings, closing = SHELLS[shell]
    # A `sae` that completes, and else shows the words that it has been given.
    own = folder / "own" / "sae"
    own.write_text(
        f'#!/bin/sh\n[ "$1" = completion ] && exec {shlex.quote(sys.executable)} -m sae "$@"\n'
        "printf '<%s>' \"$@\"; echo\n"
    )
    own.chmod(0o755)
    home = folder / "home"
    home.mkdir()
    (home / settings).write_text(f"PS1='ready> '\nsource <(sae completion {shell})\n")
    environment = os.environ | {
        "PATH": f"{own.parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "HOME": str(home),
        "ZDOTDIR": str(home),
        "TERM": "dumb",
    }
    process, terminal = pty.fork()
    if process == 0:
        os.execve(path, [path, *(word.format(home) for word in words)], environment)
    try:
        until(terminal, "ready> ")
        for typed, expected in TYPED.items():
            os.write(terminal, f"sae {typed.format(closing)}\n".encode())
            assert expected in until(terminal, "ready> ")
    finally:
        os.write(terminal, b"\x04")
        os.close(terminal)
        os.waitpid(process, 0)


def until(terminal: int, end: str, seconds: float = 20) -> str:
    """What a terminal shows up to an end, which has to come."""
    shown, last = "", time.monotonic() + seconds
    while end not in shown and time.monotonic() < last:
        if select.select([terminal], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):
                shown += os.read(terminal, 1024).decode(errors="replace")
    assert end in shown, shown
    return shown
