"""The command line in a process of its own that has imported everything: it starts at once."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest


@dataclass(frozen=True)
class Running:
    """A command that has been started."""

    words: tuple[str, ...]
    process: ForkServerProcess
    out: Path
    err: Path

    def ended(self, seconds: float = 120) -> CompletedProcess[str]:
        """Waits for its end; what it said, and its exit status."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"{self.words} still runs"
        said = self.out.read_text(), self.err.read_text()
        return CompletedProcess(self.words, self.process.exitcode, *said)

    def kill(self) -> CompletedProcess[str]:
        self.process.kill()
        return self.ended()


Start = Callable[..., Running]


def _begin(out: Path, err: Path, folder: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    for path, descriptor in ((out, 1), (err, 2)):
        with path.open("w") as file:
            os.dup2(file.fileno(), descriptor)
    os.chdir(folder)


def _main(words: tuple[str, ...], *place: Any) -> None:
    from sae.cli import main

    _begin(*place)
    sys.exit(main(list(words)))


def _script(words: tuple[str, ...], *place: Any) -> None:
    _begin(*place)
    exec(compile(words[0], "a script", "exec"), {"__name__": "__main__"})


def _starter(
    run: Callable[..., None], processes: ForkServerContext, factory: pytest.TempPathFactory
) -> Start:
    def started(*words: str, folder: Path | None = None, **environment: str) -> Running:
        said = factory.mktemp("said")
        out, err = said / "out", said / "err"
        for path in (out, err):
            path.touch()
        given = (words, out, err, folder or Path.cwd(), environment)
        process = processes.Process(target=run, args=given)
        process.start()
        return Running(words, process, out, err)

    return started


@pytest.fixture(scope="session")
def start(processes: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Starts `sae` with words, in this folder or another, with variables of its own."""
    return _starter(_main, processes, tmp_path_factory)


@pytest.fixture(scope="session")
def start_python(
    processes: ForkServerContext, tmp_path_factory: pytest.TempPathFactory
) -> Start:
    """Starts the text of a Python script as `start` does a command."""
    return _starter(_script, processes, tmp_path_factory)


@pytest.fixture(scope="session")
def command(start: Start) -> Callable[..., CompletedProcess[str]]:
    """Runs `sae` with words to its end, as `subprocess.run` does."""
    return lambda *words, **others: start(*words, **others).ended()
