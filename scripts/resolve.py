"""Resolve what a stranger installs: on every Python, from the public registry, as nobody here.

    python scripts/resolve.py

Local configuration (indexes, wheels, constraints) is left out, since it can hide that
something cannot be had elsewhere. Only descriptions of packages are fetched, and nothing is
installed. The status is 1 if something does not resolve, and 75 if the registry cannot be
reached, which says nothing about it.
"""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FAILED, UNREACHABLE = 1, 75
TRIES = 3
# These have no wheels, and need none: they are Python alone.
FROM_SOURCE = ("antlr4-python3-runtime", "transformers-stream-generator")
PINNED = ("--constraints", "constraints.txt")
# What pip is given, by the target of the Makefile or the sentence of the README.
INSTALLATIONS = {
    "make demo": ("pyproject.toml", *PINNED),
    "make test": ("pyproject.toml", *PINNED, "--all-extras"),
    "peers without their dependencies": ("tests/peers.txt", *PINNED, "--no-deps"),
    "pip install without the pins": ("pyproject.toml",),
}


@dataclass(frozen=True, slots=True)
class Resolution:
    """How it went for one installation on one Python."""

    status: int
    why: str = ""


def pythons() -> list[str]:
    """Return the versions of Python that the package says it supports."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = (re.fullmatch(r".* :: (3\.\d+)", one) for one in project["classifiers"])
    return [one[1] for one in found if one]


def command(python: str, words: tuple[str, ...]) -> list[str]:
    """Return the resolver's command for an installation on Linux."""
    sources = (f"--no-binary={name}" for name in FROM_SOURCE)
    return [
        *(str(Path(sys.executable).with_name("uv")), "pip", "compile", *words),
        *(f"--python-version={python}", "--python-platform=x86_64-manylinux_2_28"),
        *("--only-binary=:all:", *sources, "--no-header", "--no-python-downloads"),
        *("--no-config", "--system-certs", "--quiet", "--no-progress"),
    ]


def environment() -> dict[str, str]:
    """Return ours without what configures installations."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_"))}


def resolve(python: str, words: tuple[str, ...]) -> Resolution:
    """Resolve an installation; what failed on the way to the registry is tried again."""
    found = Resolution(0)
    for _ in range(TRIES):
        done = subprocess.run(
            command(python, words),
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        found = resolution(done.returncode, done.stderr.strip())
        if found.status != UNREACHABLE:
            break
    return found


def resolution(returncode: int, said: str) -> Resolution:
    """Return what the resolver's end means: it says itself when there is no solution."""
    if returncode == 0:
        return Resolution(0)
    network = re.search(r"error sending request|Failed to fetch|timed? ?out|dns error", said)
    if "No solution found" not in said and network:
        return Resolution(UNREACHABLE, said)
    return Resolution(FAILED, said)


def resolutions() -> Iterator[tuple[str, Resolution]]:
    """Resolve each installation on each Python, two at a time."""
    wanted = [(name, python) for name in INSTALLATIONS for python in pythons()]
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda one: resolve(one[1], INSTALLATIONS[one[0]]), wanted)
        for (name, python), one in zip(wanted, found, strict=True):
            yield f"{name}, Python {python}", one


def main() -> int:
    """Print a line each, and return the worst status."""
    worst = 0
    for name, found in resolutions():
        said = {0: "resolves", UNREACHABLE: "not known"}.get(found.status, "DOES NOT RESOLVE")
        print(f"{name}: {said}", flush=True)
        if found.why:
            print(found.why, flush=True)
        if worst != FAILED:
            worst = found.status or worst
    if worst == UNREACHABLE:
        print("the registry could not be reached, so the rest is not known")
    return worst


if __name__ == "__main__":
    sys.exit(main())
