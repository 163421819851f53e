"""What a stranger installs: the Makefile's commands, the resolver's answers, the wheel."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def script():
    """`scripts/resolve.py`, which is no package."""
    path = ROOT / "scripts" / "resolve.py"
    spec = importlib.util.spec_from_file_location("resolve", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["resolve"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("target", ["demo", "test", "test-fast", "check", "bench", "resolve"])
def test_arguments_for_pip_reach_every_installation(target, tmp_path):
    # VENV names a folder that is not there, so that make would install into it.
    words = ["make", "-n", "-C", str(ROOT), target, f"VENV={tmp_path}/venv"]
    for given in (["PIP_ARGS=--index-url X --no-cache-dir"], []):
        done = subprocess.run([*words, *given], capture_output=True, text=True, check=True)
        installs = [line for line in done.stdout.splitlines() if "pip install" in line]
        assert len(installs) == (3 if target == "demo" else 5)
        for line in installs:
            assert ("pip install --index-url X --no-cache-dir " in line) == bool(given)


def test_the_supported_pythons_are_those_of_the_package():
    assert script().pythons() == ["3.11", "3.12", "3.13"]


def test_local_configuration_does_not_reach_the_resolver(monkeypatch):
    for name in ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_CONSTRAINT", "UV_FIND_LINKS"):
        monkeypatch.setenv(name, "/somewhere")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    found = script().environment()
    assert not [name for name in found if name.startswith(("PIP_", "UV_"))]
    assert found["HTTPS_PROXY"] == "http://proxy"
    assert "--no-config" in script().command("3.12", ("pyproject.toml",))


@pytest.mark.parametrize(
    ("returncode", "said", "status"),
    [
        (0, "", 0),
        (
            1,
            "error: No solution found when resolving dependencies\n  cause: Because "
            "torch==2.13.0 depends on triton==3.7.1 and triton==3.9.0, we can conclude that "
            "torch==2.13.0 cannot be used.",
            1,
        ),
        (
            2,
            "error: Failed to fetch: `https://pypi.org/simple/zarr/`\n  Caused by: error "
            "sending request for url\n  Caused by: dns error",
            75,
        ),
        (2, "error: Request failed after 3 retries\n  Caused by: operation timed out", 75),
        (2, "error: unexpected argument '--python-platfrom' found", 1),
        (2, "error: Failed to parse: `pyproject.toml`", 1),
    ],
)  # fmt: skip
def test_a_network_that_fails_is_told_apart_from_what_does_not_resolve(
    returncode, said, status
):
    assert script().resolution(returncode, said).status == status


@pytest.mark.slow
def test_the_wheel_holds_all_that_the_command_needs(tmp_path):
    pytest.importorskip("hatchling")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        file.extractall(tmp_path / "installed")
    tracked = subprocess.run(
        ["git", "ls-files", "sae", "conf"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    wanted = {name if name.startswith("sae/") else f"sae/{name}" for name in tracked}
    assert wanted
    assert wanted <= names
    place = os.pathsep.join([str(tmp_path / "installed"), *sys.path[1:]])
    program = "import sys, sae, sae.cli; print(sae.__file__); sys.exit(sae.cli.main())"
    help_of = [sys.executable, "-P", "-c", program, "train", "--help"]
    environment = os.environ | {"PYTHONPATH": place}
    done = subprocess.run(
        help_of, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert str(tmp_path / "installed") in done.stdout
    assert "sae=...  batchtopk" in done.stdout
