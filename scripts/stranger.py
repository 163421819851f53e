"""Install the wheel as a stranger would, and use it away from the clone.

    python scripts/stranger.py

For each supported Python on this machine: an empty environment, the wheel and what it requires
from the public registry, without any local configuration, and then a small run in an empty
folder. Only torch comes with whatever configuration this machine has, since its build (for a
CPU, or for some CUDA) is a choice of its own; scripts/resolve.py checks that the registry
has it. A Python that is not here is named and passed over, and so is one for which only the
build with CUDA can be had, which brings gigabytes.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROBE = """
import sys, importlib.resources as resources, sae
home = resources.files("sae")
assert not str(home).startswith(sys.argv[1]), home
assert (home / "py.typed").is_file() and (home / "conf" / "model" / "smollm2.yaml").is_file()
assert callable(sae.train) and sae.TrainConfig(seed=1).seed == 1
print("sae", sae.__version__, "in", home.parent.name)
"""
RUN = (
    "--version",
    "--help",
    "harvest run=mine data=factbook n_tokens=2_048",
    "train run=mine sae.d_sae=64 training_tokens=4_096 train_batch_size_tokens=256",
    "eval mine n_behaviour_tokens=128",
    "analyze mine dials.n_features=0",
)


def pythons() -> Iterator[str]:
    """Yield the minor versions that the package names as supported."""
    about = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for line in about["classifiers"]:
        if found := re.search(r":: (3\.\d+)$", line):
            yield found[1]


def interpreter(version: str) -> str | None:
    """Return the command of a Python that is here and starts."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    others = map(str, sorted(pyenv.glob(f"{version}.*/bin/python")))
    asked = ["-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    for path in filter(None, (shutil.which(f"python{version}"), sys.executable, *others)):
        # A command of that name may only say that it is not set up.
        done = subprocess.run([path, *asked], capture_output=True, text=True, check=False)
        if done.stdout == f"{version}\n":
            return path
    return None


def has_light_torch(pip: Sequence[str], torch: str, folder: Path) -> bool:
    """Return whether the build of torch that pip would take brings no CUDA."""
    words = [*pip, "--dry-run", "--no-deps", "--only-binary=:all:", "--report", "-", torch]
    (found,) = json.loads(run(words, folder))["install"]
    light: bool = found["metadata"]["version"].endswith("+cpu")
    return light or sys.platform != "linux"


def bare() -> dict[str, str]:
    """Return the environment without what configures pip here, or tells Python of the clone."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_", "PYTHON"))}
    return kept | {
        "PIP_CONFIG_FILE": os.devnull,
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
    }


def run(
    words: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
) -> str:
    """Run a program; what it printed, or an end with what it said last.

    Raises:
        RuntimeError: if it fails.
    """
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def check(version: str, python: str, wheel: Path, scratch: Path) -> str:
    """Install the wheel for a Python and use it; returns what was found, for people."""
    began, folder = time.perf_counter(), scratch / version
    folder.mkdir()
    run([python, "-m", "venv", str(folder / "venv")], folder)
    here = folder / "venv" / "bin" / "python"
    pip = [str(here), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    torch = next(line for line in pins.splitlines() if line.startswith("torch=="))
    if not has_light_torch(pip, torch, folder):
        return f"not checked: only the build of {torch} with CUDA can be had here"
    run([*pip, torch], folder)
    run([*pip, str(wheel)], folder, bare())
    print(run([str(here), "-P", "-c", PROBE, str(ROOT)], folder, bare()).strip())
    for words in RUN:
        run([str(here.with_name("sae")), *words.split()], folder, bare())
    (page,) = folder.glob("mine/atlas/*/index.html")
    assert page.stat().st_size > 10_000, page
    return f"works, {time.perf_counter() - began:.0f} s"


def main() -> int:
    """Check every Python; returns 1 if one fails or none could be checked."""
    worked = 0
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", place]
        run(build, ROOT)
        (wheel,) = scratch.glob("*.whl")
        for version in pythons():
            python = interpreter(version)
            if python is None:
                print(f"Python {version}: not checked: it is not on this machine", flush=True)
                continue
            try:
                said = check(version, python, wheel, scratch)
            except RuntimeError as error:
                print(f"Python {version}: FAILED\n{error}", flush=True)
                return 1
            worked += said.startswith("works")
            print(f"Python {version}: {said}", flush=True)
    return 0 if worked else 1


if __name__ == "__main__":
    sys.exit(main())
