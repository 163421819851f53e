"""The command line in a process of its own that has imported everything: it starts at once."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from subprocess import CompletedProcess

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


def _main(
    words: tuple[str, ...], out: Path, err: Path, folder: Path, environment: dict[str, str]
) -> None:
    from sae.cli import main

    os.environ.update(environment)
    for path, descriptor in ((out, 1), (err, 2)):
        with path.open("w") as file:
            os.dup2(file.fileno(), descriptor)
    os.chdir(folder)
    sys.exit(main(list(words)))


@pytest.fixture(scope="session")
def start(processes: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Starts `sae` with words, in this folder or another, with variables of its own."""

    def start_command(*words: str, folder: Path | None = None, **environment: str) -> Running:
        said = tmp_path_factory.mktemp("said")
        out, err = said / "out", said / "err"
        for path in (out, err):
            path.touch()
        given = (words, out, err, folder or Path.cwd(), environment)
        process = processes.Process(target=_main, args=given)
        process.start()
        return Running(words, process, out, err)

    return start_command


@pytest.fixture(scope="session")
def command(start: Start) -> Callable[..., CompletedProcess[str]]:
    """Runs `sae` with words to its end, as `subprocess.run` does."""
    return lambda *words, **others: start(*words, **others).ended()
